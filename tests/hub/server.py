"""A Hub on the loopback interface: as much of the Hub's HTTP API as huggingface_hub uses here, with faults to order.

    with HubServer() as hub:
        hub.fail('POST', '/commit/', 500)                 # the next such request
        hub.cut('GET', '/lfs/', after=1000)               # the connection ends after 1000 bytes of the answer
        subprocess.run([...], env={**os.environ, **hub.env(cache)})

Real clients talk to it through HF_ENDPOINT. Xet, the Hub's other storage, is switched off (HF_HUB_DISABLE_XET), so
large files go by git-lfs's protocol. Everything is in memory.
"""
from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Optional
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = 'hf_' + 'writerwriterwriterwriterwriter12'
READER = 'hf_' + 'readerreaderreaderreaderreader12'  # may read and not write
USERS = {TOKEN: 'user', READER: 'reader'}
LARGE = 4096  # bytes from which a file that is not text goes by LFS


@dataclass
class Repo:
    """Branches are lists of commits; a commit is the name of every file and its bytes."""
    private: bool = False
    gated: bool = False
    branches: dict[str, list[str]] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    large: set[str] = field(default_factory=set)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        self.messages.append(message)
        oid = hashlib.sha1(f'{branch}/{len(self.commits)}/{message}'.encode()).hexdigest()
        self.commits[oid] = files
        self.branches.setdefault(branch, []).append(oid)
        return oid

    def resolve(self, revision: str) -> Optional[str]:
        if revision in self.branches:
            return self.branches[revision][-1]
        return revision if revision in self.commits else None

    def files(self, revision: str = 'main') -> dict[str, bytes]:
        return self.commits[self.resolve(revision) or '']


@dataclass
class Fault:
    method: str
    path: str
    status: int = 0
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    after: int = -1
    gate: Optional[threading.Event] = None
    handled: bool = False
    seen: int = 0


class HubServer:
    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str], float]] = []
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        self.url = f'http://127.0.0.1:{self.http.server_address[1]}'
        self.storage = f'http://localhost:{self.http.server_address[1]}'  # to a client another host, as the real one is
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)

    def __enter__(self) -> HubServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def env(self, home: Path, token: Optional[str] = TOKEN) -> dict[str, str]:
        """Variables that make a client talk to this server alone, with a cache of its own."""
        return {'HF_ENDPOINT': self.url, 'HF_HOME': str(home), 'HF_HUB_DISABLE_XET': '1', 'HF_HUB_OFFLINE': '0',
                'HF_TOKEN': token or '', 'HF_HUB_DISABLE_PROGRESS_BARS': '1', 'HF_HUB_DISABLE_TELEMETRY': '1',
                'NO_PROXY': '127.0.0.1,localhost', 'no_proxy': '127.0.0.1,localhost'}

    def fail(self, method: str, path: str, status: int, times: int = 1, **headers: str) -> Fault:
        """Answer the next requests whose path matches the regular expression with an error."""
        self.faults.append(Fault(method, path, status, times, {k.replace('_', '-'): v for k, v in headers.items()}))
        return self.faults[-1]

    def cut(self, method: str, path: str, after: int = 0, times: int = 1) -> Fault:
        """End the connection after that many bytes of the answer, or, for PUT and POST, of the request's body."""
        self.faults.append(Fault(method, path, times=times, after=after))
        return self.faults[-1]

    def stall(self, method: str, path: str, after: int = 0) -> Fault:
        """As `cut`, but the connection stays open and silent until the fault's gate is set."""
        self.faults.append(Fault(method, path, after=after, gate=threading.Event()))
        return self.faults[-1]

    def lose(self, method: str, path: str) -> Fault:
        """Do what the next such request asks for, and hang up without an answer."""
        self.faults.append(Fault(method, path, handled=True))
        return self.faults[-1]

    def count(self, method: str, path: str) -> int:
        return sum(m == method and re.search(path, p) is not None for m, p, _, _ in self.requests)

    def add(self, name: str, files: dict[str, bytes], **settings: Any) -> Repo:
        """A repository of somebody else."""
        repo = self.repos[name] = Repo(**settings)
        repo.commit('main', {'.gitattributes': b'*.safetensors filter=lfs\n', **files}, 'initial commit')
        for path, data in files.items():
            if _is_large(path, data):
                repo.large.add(path)
                self.stored[hashlib.sha256(data).hexdigest()] = data
        return repo


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # ------------------------------------------------------------------------------------------------- transport

    def _serve(self) -> None:
        hub = self.server_hub
        with hub.lock:
            hub.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, time.time()))
            fault = next((f for f in hub.faults if f.method == self.command and re.search(f.path, self.path)
                          and f.seen < f.times), None)
            if fault is not None:
                fault.seen += 1
        length = int(self.headers.get('Content-Length') or 0)
        if fault is not None and fault.after >= 0 and self.command in ('POST', 'PUT'):
            self.rfile.read(min(fault.after, length))
            self._hang_up(fault.gate)
            return
        if self.headers.get('Transfer-Encoding') == 'chunked':
            body = self._chunks()
        else:
            body = self.rfile.read(length)
        if fault is not None and fault.status:
            self._answer(fault.status, {'error': 'a fault to order'}, fault.headers)
            return
        self.cut_after = fault.after if fault is not None else -1
        self.gate = fault.gate if fault is not None else None
        try:
            with hub.lock:
                answer = self._route(body)
        except _Refused as refused:
            answer = refused.status, {'error': refused.message}, {
                'X-Error-Code': refused.code, 'X-Error-Message': refused.message, **refused.headers}
        if fault is not None and fault.handled:
            self._hang_up()
            return
        self._answer(*answer)

    def _chunks(self) -> bytes:
        body = b''
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _hang_up(self, gate: Optional[threading.Event] = None) -> None:
        if gate is not None:
            gate.wait(120)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, status: int, body: Any = None, headers: Optional[dict[str, str]] = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b''
        self.send_response(status)
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        if 'Content-Length' not in (headers or {}):
            self.send_header('Content-Length', str(len(data)))
        if not isinstance(body, bytes):
            self.send_header('Content-Type', 'application/json')
        self.end_headers()
        if self.command == 'HEAD':
            return
        cut = getattr(self, 'cut_after', -1)
        self.wfile.write(data if cut < 0 else data[:cut])
        self.wfile.flush()
        if cut >= 0:
            self._hang_up(self.gate)

    # --------------------------------------------------------------------------------------------------- the API

    def _route(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        url = urlsplit(self.path)
        path, query = url.path, parse_qs(url.query)
        for method, pattern, handler in _ROUTES:
            if self.command == method and (found := re.fullmatch(pattern, path)):
                return handler(self, body, query, *(unquote(g) for g in found.groups()))  # type: ignore[no-any-return]
        raise _Refused(404, '', f'this server has no {self.command} {path}')

    @property
    def user(self) -> Optional[str]:
        token = (self.headers.get('Authorization') or '').removeprefix('Bearer ')
        if token and token not in USERS:
            raise _Refused(401, '', 'Invalid credentials in Authorization header')
        return USERS.get(token)

    def _repo(self, name: str, write: bool = False) -> Repo:
        repo, user = self.server_hub.repos.get(name), self.user
        if repo is None or (repo.private and user != name.split('/')[0]):
            # As the Hub does: whoever is not logged in is not told whether it is there.
            raise _Refused(404 if user else 401, 'RepoNotFound', 'Repository not found')
        if write and user is None:
            raise _Refused(401, '', 'Invalid username or password.')
        if write and user != name.split('/')[0]:
            raise _Refused(403, '', 'You do not have write permission here')
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        oid = repo.resolve(revision)
        if oid is None:
            raise _Refused(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        return oid

    def create(self, body: bytes, _: Any) -> tuple[int, Any, dict[str, str]]:
        asked = json.loads(body)
        if self.user is None:
            raise _Refused(401, '', 'Invalid username or password.')
        name = f'{asked.get("organization") or self.user}/{asked["name"]}'
        if self.user == 'reader' or name.split('/')[0] != self.user:
            raise _Refused(403, '', f'You do not have the rights to create a model under the namespace {name}')
        url = {'url': f'{self.server_hub.url}/{name}'}
        if name in self.server_hub.repos:
            return 409, {'error': 'You already created this model repo', **url}, {}
        repo = self.server_hub.repos[name] = Repo(private=asked.get('visibility') == 'private' or bool(
            asked.get('private')))
        repo.commit('main', {'.gitattributes': b'*.safetensors filter=lfs\n'}, 'initial commit')
        return 200, url, {}

    def whoami(self, _: bytes, __: Any) -> tuple[int, Any, dict[str, str]]:
        if self.user is None:
            raise _Refused(401, '', 'Invalid username or password.')
        return 200, {'type': 'user', 'name': self.user, 'orgs': []}, {}

    def validate(self, body: bytes, _: Any) -> tuple[int, Any, dict[str, str]]:
        front = _front(json.loads(body)['content'])
        errors = [] if isinstance(front, dict) else [{'message': 'metadata is no mapping'}]
        for result in (front or {}).get('model-index', []):
            for r in result['results']:
                if not (r['task']['type'] and r['dataset']['type'] and r['dataset']['name'] and all(
                        isinstance(m['value'], (int, float)) and m['type'] for m in r['metrics'])):
                    errors.append({'message': 'model-index lacks something'})
        return (400 if errors else 200), {'errors': errors, 'warnings': []}, {}

    def models(self, _: bytes, query: dict[str, list[str]]) -> tuple[int, Any, dict[str, str]]:
        found = []
        for name, repo in self.server_hub.repos.items():
            info = self._info(name, repo, 'main')
            hidden = repo.private and self.user != name.split('/')[0]
            if (not hidden and set(query.get('filter', [])) <= set(info['tags'])
                    and query.get('author', [name.split('/')[0]])[0] == name.split('/')[0]
                    and query.get('search', [''])[0] in name):
                found.append(info)
        return 200, found[:int(query.get('limit', ['1000'])[0])], {}

    def _info(self, name: str, repo: Repo, revision: str) -> dict[str, Any]:
        oid = self._commit_of(repo, revision)
        files = repo.commits[oid]
        front = _front(files.get('README.md', b'').decode()) or {}
        return {'id': name, 'modelId': name, '_id': name, 'author': name.split('/')[0], 'sha': oid,
                'private': repo.private, 'gated': 'auto' if repo.gated else False, 'disabled': False, 'downloads': 0,
                'likes': 0, 'tags': front.get('tags', []), 'library_name': front.get('library_name'), 'cardData': front,
                'siblings': [{'rfilename': f} for f in files], 'createdAt': '2024-01-01T00:00:00.000Z',
                'lastModified': '2024-01-01T00:00:00.000Z'}

    def info(self, _: bytes, __: Any, name: str, revision: str = 'main') -> tuple[int, Any, dict[str, str]]:
        return 200, self._info(name, self._repo(name), revision), {}

    def tree(self, _: bytes, __: Any, name: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(name)
        files = repo.commits[self._commit_of(repo, revision)]
        return 200, [{'type': 'file', 'path': p, 'size': len(d), 'oid': _blob_id(d), **(
            {'lfs': {'oid': hashlib.sha256(d).hexdigest(), 'size': len(d), 'pointerSize': 130}}
            if p in repo.large else {})} for p, d in files.items()], {}

    def branch(self, _: bytes, __: Any, name: str, branch: str) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(name, write=True)
        if branch in repo.branches:
            raise _Refused(409, '', 'Reference already exists')
        repo.branches[branch] = list(repo.branches['main'])
        return 201, {}, {}

    def preupload(self, body: bytes, _: Any, name: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(name, write=True)
        there = repo.commits[self._commit_of(repo, revision)]

        def mode(path: str, size: int, sample: bytes) -> str:
            return 'lfs' if _is_large(path, sample, size) else 'regular'

        return 200, {'files': [{
            'path': f['path'], 'shouldIgnore': False,
            'uploadMode': mode(f['path'], f['size'], base64.b64decode(f['sample'])),
            **({'oid': hashlib.sha256(there[f['path']]).hexdigest() if f['path'] in repo.large
                else _blob_id(there[f['path']])} if f['path'] in there else {}),
        } for f in json.loads(body)['files']]}, {}

    def batch(self, body: bytes, _: Any, name: str) -> tuple[int, Any, dict[str, str]]:
        self._repo(name, write=True)
        objects = []
        for o in json.loads(body)['objects']:
            new = o['oid'] not in self.server_hub.stored
            objects.append({**o, **({'actions': {'upload': {
                'href': f'{self.server_hub.storage}/upload/{o["oid"]}?signature=abc', 'header': {}}}} if new else {})})
        return 200, {'transfer': 'basic', 'objects': objects}, {}

    def upload(self, body: bytes, _: Any, oid: str) -> tuple[int, Any, dict[str, str]]:
        assert 'Authorization' not in self.headers, 'a token went to the storage'
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, '', 'the bytes are not those of the oid')
        self.server_hub.stored[oid] = body
        return 200, None, {}

    def commit(self, body: bytes, _: Any, name: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(name, write=True)
        files = dict(repo.commits[self._commit_of(repo, revision)])
        message = ''
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry['value']
            if entry['key'] == 'header':
                message = value['summary']
            elif entry['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
                repo.large.discard(value['path'])
            elif entry['key'] == 'lfsFile':
                if value['oid'] not in self.server_hub.stored:
                    raise _Refused(400, '', f'{value["path"]} was not uploaded')
                files[value['path']] = self.server_hub.stored[value['oid']]
                repo.large.add(value['path'])
            elif entry['key'] == 'deletedFile':
                files.pop(value['path'])
        oid = repo.commit(revision, files, message)
        return 200, {'success': True, 'commitOid': oid, 'commitUrl': f'{self.server_hub.url}/{name}/commit/{oid}'}, {}

    def resolve(self, _: bytes, __: Any, name: str, revision: str, path: str) -> tuple[int, Any, dict[str, str]]:
        repo = self._repo(name)
        if repo.gated:
            raise _Refused(403 if self.user else 401, 'GatedRepo', f'Access to model {name} is restricted')
        oid = self._commit_of(repo, revision)
        data = repo.commits[oid].get(path)
        if data is None:
            raise _Refused(404, 'EntryNotFound', 'Entry not found', {'X-Repo-Commit': oid})
        if path in repo.large:  # as to the Hub's storage: elsewhere, signed, with the real size and hash here
            sha = hashlib.sha256(data).hexdigest()
            return 302, None, {
                'Location': f'{self.server_hub.storage}/lfs/{sha}?signature=abc', 'X-Repo-Commit': oid,
                'X-Linked-Etag': f'"{sha}"', 'X-Linked-Size': str(len(data)), 'ETag': f'"{_blob_id(data)}"'}
        return self._part(data, {'X-Repo-Commit': oid, 'ETag': f'"{_blob_id(data)}"'})

    def lfs(self, _: bytes, __: Any, oid: str) -> tuple[int, Any, dict[str, str]]:
        assert 'Authorization' not in self.headers, 'a token went to the storage'
        return self._part(self.server_hub.stored[oid], {'ETag': f'"{oid}"'})

    def _part(self, data: bytes, headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        headers = {**headers, 'Accept-Ranges': 'bytes'}
        if found := re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range') or ''):
            start, end = int(found[1]), int(found[2] or len(data) - 1)
            return 206, data[start:end + 1], {**headers, 'Content-Range': f'bytes {start}-{end}/{len(data)}'}
        return 200, data, {**headers, 'Content-Length': str(len(data))}


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str, headers: Optional[dict[str, str]] = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


def _front(text: str) -> Any:
    found = re.match(r'---\n(.*?)\n---\n', text, re.DOTALL)
    return yaml.safe_load(found[1]) if found else {}


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


def _is_large(path: str, data: bytes, size: Optional[int] = None) -> bool:
    return path.endswith(('.safetensors', '.bin', '.png')) and (len(data) if size is None else size) >= LARGE


_NAME = r'([^/]+/[^/]+)'
_ROUTES: list[tuple[str, str, Any]] = [
    ('POST', '/api/repos/create', _Handler.create),
    ('GET', '/api/whoami-v2', _Handler.whoami),
    ('POST', '/api/validate-yaml', _Handler.validate),
    ('GET', '/api/models', _Handler.models),
    ('GET', f'/api/models/{_NAME}', _Handler.info),
    ('GET', f'/api/models/{_NAME}/revision/([^/]+)', _Handler.info),
    ('GET', f'/api/models/{_NAME}/tree/([^/]+)', _Handler.tree),
    ('POST', f'/api/models/{_NAME}/branch/([^/]+)', _Handler.branch),
    ('POST', f'/api/models/{_NAME}/preupload/([^/]+)', _Handler.preupload),
    ('POST', f'/api/models/{_NAME}/commit/([^/]+)', _Handler.commit),
    ('POST', f'/{_NAME}.git/info/lfs/objects/batch', _Handler.batch),
    ('PUT', '/upload/([0-9a-f]+)', _Handler.upload),
    ('GET', '/lfs/([0-9a-f]+)', _Handler.lfs),
    ('HEAD', '/lfs/([0-9a-f]+)', _Handler.lfs),
    ('GET', f'/{_NAME}/resolve/([^/]+)/(.+)', _Handler.resolve),
    ('HEAD', f'/{_NAME}/resolve/([^/]+)/(.+)', _Handler.resolve),
]
