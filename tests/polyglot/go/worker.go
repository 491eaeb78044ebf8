package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/proto"

	busv1 "example.com/program/gen/postbus/bus/v1"
)

// A Handler returns the encoded response to an encoded request, or a CallError.
type Handler func(ctx context.Context, request []byte) ([]byte, error)

// A Worker serves methods of its service.
type Worker struct {
	bus          *Bus
	channel      *amqp.Channel
	controlQueue string
	mutex        sync.Mutex
	running      map[string]context.CancelFunc // by reply-to and correlation id
}

// Serve serves each method by its handler, until the connection is lost.
func Serve(bus *Bus, handlers map[string]Handler) error {
	worker := &Worker{bus: bus, running: map[string]context.CancelFunc{}}
	worker.controlQueue = bus.service + ".control." + random()
	var err error
	if worker.channel, err = bus.connection.Channel(); err != nil {
		return err
	}
	if err = worker.channel.Qos(64, 0, false); err != nil {
		return err
	}
	if err = worker.takeControls(handlers); err != nil { // bound before the first call
		return err
	}
	for method, handler := range handlers {
		if err = worker.serve(method, handler); err != nil {
			return err
		}
	}
	return nil
}

func (worker *Worker) takeControls(handlers map[string]Handler) error {
	channel, exchange := worker.channel, worker.bus.exchange("control")
	if _, err := channel.QueueDeclare(worker.controlQueue, false, true, true, false, nil); err != nil {
		return err
	}
	keys := []string{worker.controlQueue}
	for method := range handlers {
		keys = append(keys, method)
	}
	for _, key := range keys {
		if err := channel.QueueBind(worker.controlQueue, key, exchange, false, nil); err != nil {
			return err
		}
	}
	deliveries, err := channel.Consume(worker.controlQueue, "", true, true, false, false, nil)
	if err != nil {
		return err
	}
	go func() {
		for delivery := range deliveries {
			worker.control(delivery)
		}
	}()
	return nil
}

// control cancels a call. Probes need no answer, and there are no streams that need credit.
func (worker *Worker) control(delivery amqp.Delivery) {
	control := &busv1.Control{}
	if proto.Unmarshal(delivery.Body, control) != nil || !control.Cancel {
		return
	}
	if caller, _, _ := strings.Cut(control.ReplyTo, "."); caller == delivery.UserId {
		worker.mutex.Lock()
		defer worker.mutex.Unlock()
		if cancel := worker.running[control.ReplyTo+" "+control.CorrelationId]; cancel != nil {
			cancel()
		}
	}
}

// serve shares the queue of the method with all other processes that serve it.
func (worker *Worker) serve(method string, handler Handler) error {
	channel, queue := worker.channel, worker.bus.service+"."+method
	_, err := channel.QueueDeclare(queue, false, true, false, false, amqp.Table{"x-expires": int32(1000)})
	if err != nil {
		return err
	}
	if err = channel.QueueBind(queue, method, worker.bus.exchange("retry"), false, nil); err != nil {
		return err
	}
	deliveries, err := channel.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for _, key := range []string{method, method + "/batch"} {
		if err = channel.QueueBind(queue, key, worker.bus.exchange("calls"), false, nil); err != nil {
			return err
		}
	}
	go func() {
		for delivery := range deliveries {
			go worker.answer(delivery, handler)
		}
	}()
	return nil
}

// answer replies to a call, or to each call of a batch, and then acknowledges it.
func (worker *Worker) answer(delivery amqp.Delivery, handler Handler) {
	defer delivery.Ack(false) //nolint:errcheck // the connection is lost: another process gets the call
	caller, _, _ := strings.Cut(delivery.ReplyTo, ".")
	if caller == "" || delivery.UserId != caller && delivery.UserId != worker.bus.service {
		return
	}
	if !strings.HasSuffix(delivery.RoutingKey, "/batch") {
		worker.reply(delivery, caller, delivery.CorrelationId, delivery.Body, handler)
		return
	}
	batch := &busv1.Batch{}
	if proto.Unmarshal(delivery.Body, batch) != nil || len(batch.CorrelationIds) != len(batch.Messages) {
		return
	}
	var calls sync.WaitGroup
	for index, body := range batch.Messages {
		calls.Go(func() { worker.reply(delivery, caller, batch.CorrelationIds[index], body, handler) })
	}
	calls.Wait()
}

func (worker *Worker) reply(
	delivery amqp.Delivery, caller, correlationID string, body []byte, handler Handler,
) {
	reply := &busv1.Reply{}
	response, err := worker.handle(delivery.ReplyTo+" "+correlationID, body, handler)
	var failed CallError
	switch {
	case errors.Is(err, context.Canceled):
		return
	case errors.As(err, &failed):
		reply.Result = &busv1.Reply_Error{Error: failed.cause}
	case err != nil:
		reply.Result = &busv1.Reply_Error{Error: failure(busv1.Code_CODE_INTERNAL, "INTERNAL", "Internal error.")}
	default:
		reply.Result = &busv1.Reply_Payload{Payload: response}
	}
	if delivery.Redelivered && reply.GetError() != nil { // the first delivery may have had an effect
		reply.GetError().Outcome = busv1.Outcome_OUTCOME_UNKNOWN
	}
	if body, err = proto.Marshal(reply); err != nil {
		return
	}
	worker.channel.Publish("postbus.replies."+caller, delivery.ReplyTo, false, false, amqp.Publishing{ //nolint:errcheck
		ContentType:   contentType,
		UserId:        worker.bus.service,
		ReplyTo:       worker.controlQueue,
		CorrelationId: correlationID,
		Body:          body,
	})
}

// handle runs the handler within the budget of the call, unless the caller cancels it.
func (worker *Worker) handle(key string, body []byte, handler Handler) ([]byte, error) {
	request := &busv1.Request{}
	if proto.Unmarshal(body, request) != nil {
		return nil, CallError{failure(busv1.Code_CODE_INVALID_ARGUMENT, "MALFORMED_MESSAGE", "Malformed.")}
	}
	budget := min(time.Duration(request.BudgetMs)*time.Millisecond, time.Minute)
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	worker.mutex.Lock()
	worker.running[key] = cancel
	worker.mutex.Unlock()
	defer func() {
		cancel()
		worker.mutex.Lock()
		delete(worker.running, key)
		worker.mutex.Unlock()
	}()
	return handler(ctx, request.Payload)
}

// Consume passes the events of a type, published by its owner, to the handler. Dead letters are kept
// for 14 days.
func Consume(bus *Bus, type_ string, handler func(*busv1.Event) error) error {
	channel, err := bus.connection.Channel()
	if err != nil {
		return err
	}
	queue, owner := bus.service+"."+type_, strings.Split(type_, ".")[1]
	for _, declared := range []struct {
		name, exchange, key string
		arguments           amqp.Table
	}{
		{queue + ".dead", bus.exchange("dead"), queue, amqp.Table{
			"x-queue-type": "quorum", "x-delivery-limit": int64(1<<31 - 1), "x-message-ttl": int64(1209600000),
		}},
		{queue, bus.exchange("retry"), queue, amqp.Table{
			"x-queue-type": "quorum", "x-dead-letter-strategy": "at-least-once",
			"x-overflow": "reject-publish", "x-delivery-limit": int64(10),
			"x-dead-letter-exchange": bus.exchange("dead"), "x-dead-letter-routing-key": queue,
		}},
	} {
		if _, err = channel.QueueDeclare(declared.name, true, false, false, false, declared.arguments); err != nil {
			return err
		}
		if err = channel.QueueBind(declared.name, declared.key, declared.exchange, false, nil); err != nil {
			return err
		}
	}
	if err = channel.QueueBind(queue, type_, "postbus.events."+owner, false, nil); err != nil {
		return err
	}
	deliveries, err := channel.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	go func() {
		for delivery := range deliveries {
			event := &busv1.Event{}
			genuine := delivery.UserId == owner || delivery.UserId == bus.service // again
			if !genuine || proto.Unmarshal(delivery.Body, event) != nil || handler(event) != nil {
				delivery.Reject(false) //nolint:errcheck // to the dead letters
				continue
			}
			delivery.Ack(false) //nolint:errcheck // it is delivered again
		}
	}()
	return nil
}
