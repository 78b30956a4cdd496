#!/bin/sh
# Generates TypeScript and the descriptor set from proto/ and the Google contracts it imports.
#   generate.sh [FOLDER]     default: libs/proto/src/gen. Another folder is for comparing.
#   generate.sh --googleapis only copies the Google contracts, which `buf lint` and `buf build` need as well.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
googleapis=$here/build/googleapis

# buf takes modules from inside the workspace and does not follow pnpm's links, hence the copies.
copy_googleapis() {
  rm -rf "$googleapis"
  for file in \
    api/annotations api/client api/field_behavior api/http api/launch_stage api/resource \
    longrunning/operations \
    rpc/code rpc/error_details rpc/status \
    protobuf/any protobuf/duration protobuf/empty protobuf/field_mask protobuf/struct protobuf/timestamp; do
    mkdir -p "$googleapis/google/${file%/*}"
    cp "$here/node_modules/google-proto-files/google/$file.proto" "$googleapis/google/$file.proto"
  done
}

copy_googleapis
[ "${1:-}" = --googleapis ] && exit 0

out=${1:-$here/src/gen}
case $out in /*) ;; *) out=$PWD/$out ;; esac
rm -rf "$out"
mkdir -p "$out"
cd "$root"
buf=$here/node_modules/.bin/buf
"$buf" generate -o "$out"
"$buf" build --exclude-source-info --as-file-descriptor-set -o "$out/descriptors.binpb"
