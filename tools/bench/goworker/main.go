// The worker of worker.c in Go, by the SDK that protoc makes: one event for each command, its payload as it came.
// Arguments: AGGREGATE_TYPE HOST:PORT... It says "ready" when each node has taken it.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	pb "goworker/cairn"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func serve(endpoint, aggregateType string, registered func()) error {
	channel, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	stream, err := pb.NewCommandServiceClient(channel).HandleCommands(context.Background())
	if err != nil {
		return err
	}
	out := make(chan *pb.HandleCommandsRequest, 512)
	out <- &pb.HandleCommandsRequest{Message: &pb.HandleCommandsRequest_Register{Register: &pb.RegisterWorker{
		Name: "bench.go", AggregateType: aggregateType, CommandTypes: []string{"Put"}, Permits: 512}}}
	go func() {
		beat := time.NewTicker(time.Second)
		for {
			var message *pb.HandleCommandsRequest
			select {
			case message = <-out:
			case <-beat.C:
				message = &pb.HandleCommandsRequest{Message: &pb.HandleCommandsRequest_Heartbeat{Heartbeat: &pb.WorkerHeartbeat{}}}
			}
			if stream.Send(message) != nil {
				return
			}
		}
	}()
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		if message.GetRegistered() != nil {
			registered()
		}
		if execute := message.GetExecute(); execute != nil {
			out <- &pb.HandleCommandsRequest{Message: &pb.HandleCommandsRequest_Result{Result: &pb.ExecutionResult{
				ExecutionId: execute.ExecutionId,
				Events: []*pb.NewEvent{{Type: "Put", Payload: &pb.NewEvent_Data{Data: execute.Command.GetData()}}}}}}
		}
	}
}

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: goworker AGGREGATE_TYPE HOST:PORT...")
	}
	var all sync.WaitGroup
	all.Add(len(os.Args) - 2)
	for _, endpoint := range os.Args[2:] {
		go func() {
			log.Fatal(endpoint, ": ", serve(endpoint, os.Args[1], all.Done))
		}()
	}
	all.Wait()
	fmt.Println("ready")
	select {}
}
