// Konnectivity's client in a kube-apiserver's place: connect SOCKET TARGET
//
// Each connection to a free loopback port, told on stdout, goes to the proxy server's socket with a CONNECT of its
// own, as a kube-apiserver sends it.
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("connect SOCKET TARGET")
	}
	socket, target := os.Args[1], os.Args[2]
	clients, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	fmt.Println("ready", clients.Addr().(*net.TCPAddr).Port)
	for {
		client, err := clients.Accept()
		must(err)
		go carry(client.(*net.TCPConn), socket, target)
	}
}

func carry(client *net.TCPConn, socket, target string) {
	defer client.Close()
	dialled, err := net.Dial("unix", socket)
	must(err)
	proxy := dialled.(*net.UnixConn)
	defer proxy.Close()
	fmt.Fprintf(proxy, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
	// The client speaks first in TLS, so that nothing is left in the reader behind the answer.
	answer, err := http.ReadResponse(bufio.NewReader(proxy), nil)
	must(err)
	if answer.StatusCode != http.StatusOK {
		log.Println("the proxy server answers", answer.Status)
		return
	}
	go func() {
		io.Copy(proxy, client)
		proxy.CloseWrite()
	}()
	io.Copy(client, proxy)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
