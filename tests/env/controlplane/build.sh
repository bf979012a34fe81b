#!/usr/bin/env bash
# Builds etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl and kwok into a folder,
# once: what is already there is kept. Where KUBEBUILDER_ASSETS names a folder, its binaries are used.
# Usage: build.sh BIN_DIR [helm]      with "helm" only that is built, for the charts' tests
# KUBERNETES=MINOR chooses another version of Kubernetes, one of the folders here; etcd, kubectl, kwok and helm
# are those of the default version, linked from DEFAULT_BIN.
set -euo pipefail
bin=$1
here=$(cd "$(dirname "$0")" && pwd)
default=$(cat "$here/default-version")
minor=${KUBERNETES:-$default}
modules=$here
[ "$minor" = "$default" ] || modules=$here/$minor
[ -e "$modules/go.mod" ] || { echo "KUBERNETES=$minor: there is no control plane of that version, only $default and $(cd "$here" && ls -d 1.* | xargs)" >&2; exit 2; }
version=$(sed -n 's/^\(require\)\{0,1\}[[:space:]]*k8s.io\/kubernetes \(v.*\)/\2/p' "$modules/go.mod")
kwok=v0.8.0
helm=v3.20.2
mkdir -p "$bin"

say() { printf '[%s] %s\n' "$(date +%T)" "$*" >&2; }

# Seconds that each part takes with empty caches on two cores; what is shared counts with the first that needs it.
seconds() {
	case $1 in
	etcd) echo 70 ;;
	kube-apiserver) echo 260 ;;
	kube-scheduler) echo 30 ;;
	kube-controller-manager) echo 70 ;;
	kubectl) echo 40 ;;
	kwok) echo 90 ;;
	helm) echo 60 ;;
	esac
}

parts="etcd kube-apiserver kube-scheduler kube-controller-manager kubectl kwok"
built=0

# Says what is built now, and how long all that is missing takes, by the pace so far.
announce() {
	local part todo=0 pace=100
	for part in $parts; do [ -x "$bin/$part" ] || todo=$((todo + $(seconds "$part"))); done
	[ "$built" = 0 ] || pace=$((SECONDS * 100 / built))
	say "building $1 (once; about $(((todo * pace / 100 + 59) / 60)) min until all is there; kept in $bin)"
	built=$((built + $(seconds "$1")))
}

from_assets() {
	local name=$1
	[ -n "${KUBEBUILDER_ASSETS:-}" ] && [ -x "$KUBEBUILDER_ASSETS/$name" ] || return 1
	ln -sf "$KUBEBUILDER_ASSETS/$name" "$bin/$name"
}

build() {
	local name=$1 package=$2
	[ -x "$bin/$name" ] && return
	from_assets "$name" && return
	announce "$name"
	local meta=k8s.io/component-base/version
	(cd "$modules" && GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -trimpath -o "$bin/$name.part" \
		-ldflags "-s -w -X $meta.gitVersion=$version -X $meta.gitMajor=1 -X $meta.gitMinor=${minor#1.}" "$package")
	mv "$bin/$name.part" "$bin/$name"
}

# Helm renders for this Kubernetes version where no cluster tells it another.
build_helm() {
	[ -x "$bin/helm" ] && return
	from_assets helm && return
	parts=helm
	announce helm
	local util=helm.sh/helm/v3/pkg/chartutil
	GOBIN="$bin" CGO_ENABLED=0 go install -trimpath \
		-ldflags "-s -w -X helm.sh/helm/v3/internal/version.version=$helm -X $util.k8sVersionMajor=1 -X $util.k8sVersionMinor=35" \
		"helm.sh/helm/v3/cmd/helm@$helm"
}

if [ "${2:-}" = helm ]; then
	exec 9>"$bin/.lock.helm"
	flock 9
	build_helm
	exit
fi
exec 9>"$bin/.lock"
flock 9
if [ "$modules" != "$here" ]; then
	for name in etcd kubectl kwok helm; do ln -sf "$DEFAULT_BIN/$name" "$bin/$name"; done
fi
build etcd ./etcd
build kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
build kube-scheduler k8s.io/kubernetes/cmd/kube-scheduler
build kube-controller-manager k8s.io/kubernetes/cmd/kube-controller-manager
build kubectl k8s.io/kubernetes/cmd/kubectl
if [ ! -x "$bin/kwok" ] && ! from_assets kwok; then
	announce kwok
	GOBIN="$bin" CGO_ENABLED=0 go install -trimpath -ldflags "-s -w" "sigs.k8s.io/kwok/cmd/kwok@$kwok"
fi
say "control plane ready in $bin"
