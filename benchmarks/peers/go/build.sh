#!/bin/sh
# Builds the peers written in Go into bin/, each with its version beside it: build.sh [GOPATH]
#
# yamux and connect need Debian's packages alone. Of the others, those are built whose checkouts are below GOPATH/src,
# and the rest is named. Checkouts are built as the environment's Go builds them: with GO111MODULE=off, from Debian's
# packages and what else is below GOPATH.
set -eu
debian=/usr/share/gocode
sources=${1:+$(cd "$1" && pwd)}
cd "$(dirname "$0")"
mkdir -p bin
go_version=$(go env GOVERSION)

note() { # program, version
	echo "$2, $go_version" >"bin/$1.version"
	echo "built $1 $2"
}

own() { # program: one of ours
	(cd "$1" && GO111MODULE=off GOPATH="${sources:+$sources:}$debian" go build -o "../bin/$1" .)
}

checkout() { # import path: whether there is a checkout to build from
	test -n "$sources" && test -d "$sources/src/$1" && return
	echo "left out $1: there is no checkout of it below GOPATH/src"
	return 1
}

described() { # import path: the version of a checkout
	git -C "$sources/src/$1" describe --tags --always --match 'v*'
}

theirs() { # import path, package, program
	checkout "$1" || return 0
	(cd "$sources/src/$1" && GOPATH="$sources:$debian" go build -tags noweb -o "$OLDPWD/bin/$3" "$2")
	note "$3" "$(described "$1")"
}

own yamux
note yamux "$(dpkg-query -W -f '${Version}' golang-github-hashicorp-yamux-dev)"
own connect
if checkout github.com/rancher/remotedialer; then
	own remotedialer
	note remotedialer "$(described github.com/rancher/remotedialer)"
fi
theirs github.com/jpillora/chisel . chisel
theirs github.com/fatedier/frp ./cmd/frps frps
theirs github.com/fatedier/frp ./cmd/frpc frpc
theirs sigs.k8s.io/apiserver-network-proxy ./cmd/server proxy-server
theirs sigs.k8s.io/apiserver-network-proxy ./cmd/agent proxy-agent
