// A byte tunnel over yamux and TLS, as one writes it with HashiCorp's library and its defaults.
//
//	yamux hub CERTIFICATE            two listeners on free loopback ports, told on stdout: agent's, clients'
//	yamux agent PORT CA TARGET       dials the hub, and the target for each stream
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"os"

	"github.com/hashicorp/yamux"
)

func main() {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "hub":
		hub(os.Args[2])
	case len(os.Args) == 5 && os.Args[1] == "agent":
		agent(os.Args[2], os.Args[3], os.Args[4])
	default:
		log.Fatal("yamux hub CERTIFICATE | yamux agent PORT CA TARGET")
	}
}

func hub(pem string) {
	certificate, err := tls.LoadX509KeyPair(pem, pem)
	must(err)
	tunnels, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	must(err)
	clients, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	fmt.Println("ready", port(tunnels), port(clients))
	carrier, err := tunnels.Accept()
	must(err)
	session, err := yamux.Client(carrier, nil)
	must(err)
	_, err = session.Ping()
	must(err)
	fmt.Println("joined")
	for {
		client, err := clients.Accept()
		must(err)
		go func() {
			stream, err := session.Open()
			must(err)
			join(client, stream)
		}()
	}
}

func agent(port, ca, target string) {
	pem, err := os.ReadFile(ca)
	must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	carrier, err := tls.Dial("tcp", "127.0.0.1:"+port, &tls.Config{RootCAs: roots})
	must(err)
	session, err := yamux.Server(carrier, nil)
	must(err)
	fmt.Println("ready")
	for {
		stream, err := session.Accept()
		must(err)
		go func() {
			upstream, err := net.Dial("tcp", target)
			must(err)
			join(upstream, stream)
		}()
	}
}

func join(a, b net.Conn) {
	done := make(chan struct{})
	go func() {
		pipe(a, b)
		close(done)
	}()
	pipe(b, a)
	<-done
	a.Close()
	b.Close()
}

// A yamux stream half-closes by Close.
func pipe(to, from net.Conn) {
	io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	} else {
		to.Close()
	}
}

func port(listener net.Listener) int {
	return listener.Addr().(*net.TCPAddr).Port
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
