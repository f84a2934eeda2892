#!/bin/bash
# A real S3 server on loopback, all of it in one folder and in memory: Ceph's monitor, one storage daemon, its gateway.
# usage: gateway.sh FOLDER MONITOR_PORT PORT ACCESS_KEY SECRET_KEY
# Says "ready" once it answers, and ends with its standard input, however whoever holds the other end has ended.
set -eu
folder=$1 monitor_port=$2 port=$3 access=$4 secret=$5
cd "$folder"
mkdir -p mon osd rgw
trap 'kill -KILL $(jobs -p) 2>/dev/null || true' EXIT
export CEPH_CONF=$folder/ceph.conf
cluster=6f4a6b1e-1111-4222-8333-123456789abc osd=7f4a6b1e-1111-4222-8333-123456789abc
# Without the short interval the monitor takes a second over every change, of which there are some twenty.
cat > ceph.conf <<CONF
[global]
fsid = $cluster
mon host = v2:127.0.0.1:$monitor_port/0
public addr = 127.0.0.1
cluster addr = 127.0.0.1
paxos propose interval = 0.02
paxos min wait = 0.01
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
admin socket =
log file = $folder/\$name.log
pid file =
run dir = $folder
keyring = $folder/admin.keyring
[mon.a]
keyring = $folder/mon.keyring
mon data = $folder/mon
[osd.0]
keyring = $folder/osd/keyring
osd data = $folder/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd class load list = *
osd class default list = *
[client.rgw]
keyring = $folder/rgw/keyring
rgw frontends = beast endpoint=127.0.0.1:$port
rgw data = $folder/rgw
rgw enable apis = s3, admin
rgw dns name =
CONF
{
  monmaptool --create --fsid $cluster --addv a "[v2:127.0.0.1:$monitor_port]" monmap --clobber
  ceph-authtool --create-keyring mon.keyring --gen-key -n mon. --cap mon 'allow *'
  ceph-authtool --create-keyring admin.keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
  ceph-authtool mon.keyring --import-keyring admin.keyring
  ceph-mon --mkfs -i a --keyring mon.keyring --monmap monmap --fsid $cluster
} >log 2>&1
ceph-mon -f -i a >>log 2>&1 </dev/null &
until ceph --connect-timeout 1 osd new $osd >>log 2>&1; do kill -0 $!; sleep 0.1; done
ceph auth get-or-create osd.0 mon 'allow profile osd' osd 'allow *' -o osd/keyring
ceph auth get-or-create client.rgw mon 'allow rw' osd 'allow rwx' -o rgw/keyring
ceph-osd -i 0 --mkfs --osd-uuid $osd >>log 2>&1
ceph-osd -f -i 0 >>log 2>&1 </dev/null &
radosgw-admin -n client.rgw user create --uid=test --display-name=test --access-key="$access" --secret="$secret" >>log 2>&1
radosgw -f -n client.rgw >>log 2>&1 </dev/null &
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do kill -0 $!; sleep 0.1; done
echo ready
read -r _ || true
