# The neutral place that make.py runs in: user anna on the host lab, every path below /home/anna. make.py says how this is called.
set -eu
former=$(realpath "$1") venv=$(realpath "$2") here=$(realpath "$(dirname "$0")") uv=$(command -v uv)
hostname lab
mount -t tmpfs tmpfs /home
mkdir -p /home/anna/mlcycle /home/anna/venv /home/anna/churn
mount --bind "$former" /home/anna/mlcycle
mount --bind "$venv" /home/anna/venv
cp "$here/make.py" /home/anna/churn/make.py
"$uv" pip install -q --offline -p /home/anna/venv/bin/python --no-deps --no-build-isolation -e /home/anna/mlcycle
cd /home/anna/churn
env -i HOME=/home/anna USER=anna LOGNAME=anna LANG=C.UTF-8 PATH=/home/anna/venv/bin:/usr/bin:/bin python /home/anna/churn/make.py
cp store-*.tar.gz "$here"
