// history checks that what the clients of a bank were told is linearizable, account by account, with
// Porcupine: a checker that knows nothing of Cairn.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

type entry struct {
	Client  int
	Account string
	Kind    string
	Amount  int64
	Outcome string
	Balance int64
	Call    int64
	Return  int64
}

// What an account may answer, and what it is afterwards.
func step(state, input, output interface{}) (bool, interface{}) {
	balance := state.(int64)
	in, out := input.(entry), output.(entry)
	after := balance
	switch in.Kind {
	case "read":
		return out.Outcome == "unknown" || out.Balance == balance, balance
	case "deposit":
		after += in.Amount
	case "withdraw":
		after -= in.Amount
	}
	switch out.Outcome {
	case "rejected":
		return after < 0, balance
	case "unknown": // it may have happened; that it hasn't is what a return at the end of time allows
		if after < 0 {
			after = balance
		}
		return true, after
	}
	return after >= 0 && out.Balance == after, after
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: history FILE")
		os.Exit(2)
	}
	file, err := os.Open(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	accounts := map[string][]porcupine.Operation{}
	lines := bufio.NewScanner(file)
	count := 0
	for lines.Scan() {
		var e entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintf(os.Stderr, "line %d: %v\n", count+1, err)
			os.Exit(2)
		}
		if e.Outcome == "unknown" {
			e.Return = math.MaxInt64
		}
		accounts[e.Account] = append(accounts[e.Account], porcupine.Operation{
			ClientId: e.Client, Input: e, Call: e.Call, Output: e, Return: e.Return})
		count++
	}
	model := porcupine.Model{
		Init: func() interface{} { return int64(0) },
		Step: step,
	}
	for account, operations := range accounts {
		if verdict := porcupine.CheckOperationsTimeout(model, operations, time.Minute); verdict != porcupine.Ok {
			fmt.Printf("%s: %d operations: %v\n", account, len(operations), verdict)
			os.Exit(1)
		}
	}
	fmt.Printf("linearizable: %d operations on %d accounts\n", count, len(accounts))
}
