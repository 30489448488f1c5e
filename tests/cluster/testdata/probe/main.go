// SPDX-License-Identifier: Apache-2.0

// Command probe is the program in the pods of the cluster's own tests: a server that names its host, and a client.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: probe serve ADDRESS | get URL | poll URL | lookup NAME | print FILE")
	}
	switch argument := os.Args[2]; os.Args[1] {
	case "serve":
		serve(argument)
	case "get":
		get(argument)
	case "poll":
		for range 20 {
			get(argument)
		}
	case "lookup":
		addresses, err := net.LookupHost(argument)
		check(err)
		fmt.Println(strings.Join(addresses, "\n"))
	case "print":
		text, err := os.ReadFile(argument)
		check(err)
		fmt.Print(string(text))
	}
}

func serve(address string) {
	name, err := os.Hostname()
	check(err)
	log.Printf("%s listens on %s", name, address)
	log.Fatal(http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, name)
	})))
}

func get(url string) {
	// A connection for each request, so that each may reach another pod.
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	check(err)
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	check(err)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
