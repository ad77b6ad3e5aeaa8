// A tunnel over Rancher's remotedialer, which speaks WebSocket with TLS.
//
//	remotedialer hub CERTIFICATE TARGET                 carries the bytes of clients' connections
//	remotedialer hub-http CERTIFICATE TARGET TARGET_CA  ends TLS and HTTP, as Rancher does, by Go's ReverseProxy
//	remotedialer agent PORT CA                          dials the hub, and whatever target the hub names
//
// A hub has two listeners on free loopback ports, told on stdout: the agent's, the clients'. CERTIFICATE is for
// both where clients speak TLS with the hub.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"

	"github.com/gorilla/websocket"
	"github.com/rancher/remotedialer"
)

const name = "agent"

// What Go keeps by itself is two connections a host, and every further request would dial anew.
const idleConnections = 1024

func main() {
	switch {
	case len(os.Args) == 4 && os.Args[1] == "hub":
		dial := listenForAgent(os.Args[2])
		carry(dial, os.Args[3])
	case len(os.Args) == 5 && os.Args[1] == "hub-http":
		dial := listenForAgent(os.Args[2])
		proxy(dial, os.Args[2], os.Args[3], os.Args[4])
	case len(os.Args) == 4 && os.Args[1] == "agent":
		agent(os.Args[2], os.Args[3])
	default:
		log.Fatal("remotedialer hub CERTIFICATE TARGET | hub-http CERTIFICATE TARGET TARGET_CA | agent PORT CA")
	}
}

func listenForAgent(pem string) remotedialer.Dialer {
	authorize := func(*http.Request) (string, bool, error) { return name, true, nil }
	server := remotedialer.New(authorize, remotedialer.DefaultErrorWriter)
	tunnels := listen()
	fmt.Println("tunnels", port(tunnels))
	go func() {
		log.Fatal((&http.Server{Handler: server}).ServeTLS(tunnels, pem, pem))
	}()
	return server.Dialer(name)
}

func carry(dial remotedialer.Dialer, target string) {
	clients := listen()
	fmt.Println("clients", port(clients))
	for {
		client, err := clients.Accept()
		must(err)
		go func() {
			stream, err := dial(context.Background(), "tcp", target)
			if err != nil {
				client.Close()
				return
			}
			join(client, stream)
		}()
	}
}

func proxy(dial remotedialer.Dialer, pem, target, ca string) {
	clients := listen()
	fmt.Println("clients", port(clients))
	reverse := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: target})
	reverse.FlushInterval = -1
	reverse.Transport = &http.Transport{
		DialContext:         dial,
		TLSClientConfig:     &tls.Config{RootCAs: roots(ca)},
		MaxIdleConnsPerHost: idleConnections,
	}
	log.Fatal((&http.Server{Handler: reverse}).ServeTLS(clients, pem, pem))
}

func agent(port, ca string) {
	dialer := &websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: roots(ca)}}
	allow := func(proto, address string) bool { return true }
	joined := func(context.Context, *remotedialer.Session) error {
		fmt.Println("ready")
		return nil
	}
	ctx := context.Background()
	log.Fatal(remotedialer.ConnectToProxy(ctx, "wss://127.0.0.1:"+port, http.Header{}, allow, dialer, joined))
}

// A stream of remotedialer has no half of a close.
func join(client, stream net.Conn) {
	go func() {
		io.Copy(stream, client)
		stream.Close()
	}()
	io.Copy(client, stream)
	client.Close()
	stream.Close()
}

func roots(ca string) *x509.CertPool {
	pem, err := os.ReadFile(ca)
	must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return pool
}

func listen() net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	return listener
}

func port(listener net.Listener) int {
	return listener.Addr().(*net.TCPAddr).Port
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
