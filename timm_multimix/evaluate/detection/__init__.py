"""The network as the backbone of an object detector: data sets, detectors, and the table of `--on transfer`."""
