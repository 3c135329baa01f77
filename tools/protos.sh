#!/usr/bin/env bash
# protos.sh generate | lint | breaking REF : stubs from protos/ into clients/python/, and Buf's checks.
# Buf reads an image that protoc writes, so google's protos come from googleapis-common-protos and nothing is vendored.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
google=$($python -c "import pathlib, google.rpc; print(pathlib.Path(list(google.rpc.__path__)[0]).parents[1])")
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

image() { # image PROTO_DIR OUT
  (cd "$1" && find limner -name '*.proto' | sort) > "$build/files"
  xargs -a "$build/files" "$python" -m grpc_tools.protoc -I "$1" -I "$google" \
    --include_imports --include_source_info --descriptor_set_out "$2"
}

case ${1:-} in
  generate)
    find clients/python/limner/v1 -name '*_pb2*' -delete 2>/dev/null || true
    PATH="$PWD/.venv/bin:$PATH" $python -m grpc_tools.protoc -I protos -I "$google" \
      --python_out clients/python --grpc_python_out clients/python \
      --mypy_out clients/python --mypy_grpc_out clients/python protos/limner/v1/*.proto
    ;;
  lint)
    image protos "$build/image.binpb"
    .venv/bin/buf lint "$build/image.binpb" --config protos/buf.yaml
    ;;
  breaking)
    git archive "$2" protos | tar -x -C "$build"
    image protos "$build/now.binpb"
    image "$build/protos" "$build/then.binpb"
    .venv/bin/buf breaking "$build/now.binpb" --against "$build/then.binpb" --config protos/buf.yaml
    ;;
  *) sed -n 2,3p "$0" >&2; exit 2 ;;
esac
