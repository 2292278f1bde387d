// etcdput: a closed loop of N puts in flight over the given endpoints; one line like cairn-bench.
package main

import (
	"context"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func main() {
	inFlight, _ := strconv.Atoi(os.Args[1])
	seconds, _ := strconv.Atoi(os.Args[2])
	var clients []*clientv3.Client
	for _, endpoint := range os.Args[3:] {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second})
		if err != nil {
			panic(err)
		}
		clients = append(clients, client)
	}
	value := strings.Repeat("x", 256)
	from := time.Now().Add(time.Second)
	until := from.Add(time.Duration(seconds) * time.Second)
	all := make([][]time.Duration, inFlight)
	var wait sync.WaitGroup
	for slot := 0; slot < inFlight; slot++ {
		wait.Add(1)
		go func(slot int) {
			defer wait.Done()
			client := clients[slot%len(clients)]
			for number := slot; time.Now().Before(until); number += inFlight {
				started := time.Now()
				if _, err := client.Put(context.Background(), fmt.Sprintf("bench-%d", number%1000), value); err != nil {
					panic(err)
				}
				if started.After(from) {
					all[slot] = append(all[slot], time.Since(started))
				}
			}
		}(slot)
	}
	wait.Wait()
	var latencies []time.Duration
	for _, some := range all {
		latencies = append(latencies, some...)
	}
	sort.Slice(latencies, func(i, j int) bool { return latencies[i] < latencies[j] })
	n := len(latencies)
	ms := func(d time.Duration) float64 { return float64(d) / 1e6 }
	fmt.Printf("in flight %d: %.0f puts/s, p50 %.2f ms, p99 %.2f ms, longest %.2f ms\n", inFlight,
		float64(n)/float64(seconds), ms(latencies[n/2]), ms(latencies[n*99/100]), ms(latencies[n-1]))
}
