package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/proto"

	busv1 "example.com/program/gen/postbus/bus/v1"
)

const contentType = "application/x-protobuf"

// A Bus is the connection of a service to the broker, with a queue for the replies to its calls.
// It does not reconnect: the program ends with its connection, and its supervisor starts it again.
type Bus struct {
	service    string // the broker account
	connection *amqp.Connection
	calls      *amqp.Channel
	replyTo    string
	mutex      sync.Mutex
	waiting    map[string]chan *busv1.Reply // by correlation id
}

// Open connects to the broker as the service of the account in url.
func Open(url string) (*Bus, error) {
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return nil, err
	}
	bus := &Bus{service: uri.Username, waiting: map[string]chan *busv1.Reply{}}
	bus.replyTo = bus.service + ".replies." + random()
	if bus.connection, err = amqp.Dial(url); err != nil {
		return nil, err
	}
	if bus.calls, err = bus.connection.Channel(); err != nil {
		return nil, err
	}
	if err = bus.declareExchanges(); err != nil {
		return nil, err
	}
	return bus, bus.takeReplies()
}

func (bus *Bus) declareExchanges() error {
	for _, kind := range []string{"calls", "replies", "control", "retry", "dead", "events"} {
		type_ := amqp.ExchangeDirect
		if kind == "events" {
			type_ = amqp.ExchangeTopic
		}
		err := bus.calls.ExchangeDeclare(bus.exchange(kind), type_, true, false, false, false, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

func (bus *Bus) exchange(kind string) string {
	return "postbus." + kind + "." + bus.service
}

func (bus *Bus) takeReplies() error {
	_, err := bus.calls.QueueDeclare(bus.replyTo, false, true, true, false, nil)
	if err != nil {
		return err
	}
	if err = bus.calls.QueueBind(bus.replyTo, bus.replyTo, bus.exchange("replies"), false, nil); err != nil {
		return err
	}
	deliveries, err := bus.calls.Consume(bus.replyTo, "", true, true, false, false, nil)
	if err != nil {
		return err
	}
	returns := bus.calls.NotifyReturn(make(chan amqp.Return, 64))
	go func() {
		for delivery := range deliveries {
			reply := &busv1.Reply{}
			if proto.Unmarshal(delivery.Body, reply) == nil {
				bus.resolve(delivery.UserId, delivery.CorrelationId, reply)
			}
		}
	}()
	go func() {
		for returned := range returns { // no worker serves the method
			failed := failure(busv1.Code_CODE_UNAVAILABLE, "NO_ROUTE", "No worker serves the method.")
			bus.resolve("", returned.CorrelationId, &busv1.Reply{Result: &busv1.Reply_Error{Error: failed}})
		}
	}()
	return nil
}

// resolve passes a reply to its call. Only the owner of the method may reply; the sender is empty
// for a message that the broker has returned.
func (bus *Bus) resolve(sender, correlationID string, reply *busv1.Reply) {
	bus.mutex.Lock()
	defer bus.mutex.Unlock()
	callee, _, _ := strings.Cut(correlationID, ".")
	if call := bus.waiting[correlationID]; call != nil && (sender == "" || sender == callee) {
		delete(bus.waiting, correlationID)
		call <- reply
	}
}

// A CallError is the error in a reply.
type CallError struct{ cause *busv1.Error }

func (failed CallError) Error() string {
	return failed.cause.GetReason() + ": " + failed.cause.GetMessage()
}

// Call calls a method with the budget of the context, which must have a deadline.
func (bus *Bus) Call(ctx context.Context, method string, request, response proto.Message) error {
	payload, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	callee := strings.Split(method, ".")[1]
	correlationID := callee + "." + random()
	call := make(chan *busv1.Reply, 1)
	bus.mutex.Lock()
	bus.waiting[correlationID] = call
	bus.mutex.Unlock()
	defer func() {
		bus.mutex.Lock()
		delete(bus.waiting, correlationID)
		bus.mutex.Unlock()
	}()
	if err = bus.send(ctx, callee, method, correlationID, payload); err != nil {
		return err
	}
	select {
	case reply := <-call:
		if reply.GetError() != nil {
			return CallError{reply.GetError()}
		}
		return proto.Unmarshal(reply.GetPayload(), response)
	case <-ctx.Done():
		return bus.cancel(callee, method, correlationID, ctx.Err())
	}
}

func (bus *Bus) send(ctx context.Context, callee, method, correlationID string, payload []byte) error {
	deadline, _ := ctx.Deadline()
	budget := max(time.Until(deadline).Milliseconds(), 1)
	body, err := proto.Marshal(&busv1.Request{
		Payload:        payload,
		OperationId:    random(), // for a repetition: that of the first call
		BudgetMs:       uint32(budget),
		DeadlineUnixMs: deadline.UnixMilli(), // for workers of the previous release
	})
	if err != nil {
		return err
	}
	return bus.calls.PublishWithContext(ctx, "postbus.calls."+callee, method, true, false, amqp.Publishing{
		ContentType:   contentType,
		UserId:        bus.service,
		ReplyTo:       bus.replyTo,
		CorrelationId: correlationID,
		Expiration:    fmt.Sprint(budget),
		Body:          body,
	})
}

func (bus *Bus) cancel(callee, method, correlationID string, reason error) error {
	body, err := proto.Marshal(&busv1.Control{ReplyTo: bus.replyTo, CorrelationId: correlationID, Cancel: true})
	if err != nil {
		return err
	}
	message := amqp.Publishing{ContentType: contentType, UserId: bus.service, Body: body}
	if err = bus.calls.Publish("postbus.control."+callee, method, false, false, message); err != nil {
		return err
	}
	return reason
}

func failure(code busv1.Code, reason, message string) *busv1.Error {
	return &busv1.Error{Code: code, Reason: reason, Message: message, Outcome: busv1.Outcome_OUTCOME_NO_EFFECT}
}

func random() string { return strings.ToLower(rand.Text()) } // 128 bits
