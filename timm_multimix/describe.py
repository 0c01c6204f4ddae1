"""`python -m timm_multimix.describe NAME …`, another name of `python -m timm_multimix describe NAME …`."""
from __future__ import annotations

import sys

from .heads import describe
from .heads.__main__ import main

if __name__ == '__main__':
    sys.exit(main())
# `import timm_multimix.describe` would put this module in the place of the public function of that name.
sys.modules[__name__] = describe  # type: ignore[assignment]
