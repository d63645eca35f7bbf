"""Corpora and token stores at s3:// addresses, through s3fs and a local server of S3's protocol."""

import fsspec
import numpy as np
import pytest

from electra_jax import file_access
from electra_jax.data.corpus import corpora, sources
from electra_jax.data.store import token_store
from electra_jax.errors import UserError

s3fs = pytest.importorskip('s3fs', reason='requires s3fs: pip install -e .[s3]')
moto_server = pytest.importorskip(
  'moto.server', reason="requires a server of S3's protocol: pip install 'moto[server]'"
)

DOCUMENTS = [f'document {number} of the bucket\nwith two lines' for number in range(5)]
ROWS = np.random.default_rng(0).integers(1, 1000, (10, 16))


@pytest.fixture(scope='module')
def server():
  """A server on a free port of this machine, as the environment names it to every client."""
  server = moto_server.ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  with pytest.MonkeyPatch.context() as patch:
    for name in ('AWS_PROFILE', 'AWS_SESSION_TOKEN'):
      patch.delenv(name, raising=False)
    patch.setenv('AWS_ENDPOINT_URL', f'http://{host}:{port}')
    patch.setenv('AWS_ACCESS_KEY_ID', 'testing')
    patch.setenv('AWS_SECRET_ACCESS_KEY', 'testing')
    patch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
    patch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    patch.setenv('AWS_CONFIG_FILE', '/nowhere')
    patch.setenv('AWS_SHARED_CREDENTIALS_FILE', '/nowhere')
    s3fs.S3FileSystem.clear_instance_cache()
    fsspec.filesystem('s3').mkdir('bucket')
    yield server
  s3fs.S3FileSystem.clear_instance_cache()
  server.stop()


def test_a_corpus_is_read_by_a_pattern(server, tmp_path):
  for name, part in (('a.txt', DOCUMENTS[:2]), ('b.txt.gz', DOCUMENTS[2:])):
    file_access.write_bytes(tmp_path / name, compressed(name, '\n\n'.join(part)))
    file_access.upload(tmp_path / name, f's3://bucket/corpus/{name}')
  parsed = sources.parse_sources('s3://bucket/corpus/*')
  assert list(corpora.read_documents(parsed)) == DOCUMENTS
  identity = corpora.corpus_identity(parsed)
  file_access.write_bytes('s3://bucket/corpus/c.txt', b'one more')
  assert list(corpora.read_documents(parsed)) == [*DOCUMENTS, 'one more']
  assert corpora.corpus_identity(parsed) != identity


def compressed(name, text):
  import gzip

  return gzip.compress(text.encode()) if name.endswith('.gz') else text.encode()


def test_a_token_store_is_written_and_read(server, tmp_path):
  kind = {'length': 16, 'vocab_size': 1000, 'pad_id': 0, 'tokenizer_fingerprint': ''}
  here = token_store.write_store(tmp_path / 'here', [ROWS], **kind, facts={})
  token_store.write_store('s3://bucket/store', [ROWS], **kind, facts={})
  store = token_store.open_store('s3://bucket/store', tmp_path / 'cache')
  assert store.identity == here.identity
  assert np.array_equal(store.read(np.arange(10)), ROWS)
  with pytest.raises(UserError, match='s3://bucket/store. exists already'):
    token_store.write_store('s3://bucket/store', [ROWS], **kind, facts={})


@pytest.mark.parametrize(
  'address', ['s3://bucket/nothing.txt', 's3://no-such-bucket/file.txt', 's3://bucket/nothing/*']
)
def test_what_does_not_exist_is_one_sentence(server, address):
  with pytest.raises(UserError) as caught:
    list(corpora.read_documents(sources.parse_sources(address)))
  assert address in str(caught.value) and '\n' not in str(caught.value)


def test_missing_credentials_are_one_sentence(server, monkeypatch):
  for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
    monkeypatch.delenv(name)
  s3fs.S3FileSystem.clear_instance_cache()
  try:
    for read in (
      lambda: list(corpora.read_documents(sources.parse_sources('s3://bucket/corpus/*.txt'))),
      lambda: token_store.open_store('s3://bucket/store'),
      lambda: file_access.write_bytes('s3://bucket/new', b'x'),
    ):
      with pytest.raises(UserError) as caught:
        read()
      message = str(caught.value)
      assert 's3://bucket/' in message and '\n' not in message
      assert 'redentials' in message and 'AWS_ACCESS_KEY_ID' in message
  finally:
    s3fs.S3FileSystem.clear_instance_cache()
