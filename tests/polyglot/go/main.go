// A worker and a client of Postbus in Go, with types generated from the published contracts.
//
//	program serve AMQP_URL                 serves GetPost of the service of the account, until it is killed
//	program call AMQP_URL GATEWAY_URL ID   calls by REST, Connect and AMQP; prints the results as JSON
//	program connect GATEWAY_URL TOKEN      calls by Connect in both formats; prints the results as JSON
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"
	amqp "github.com/rabbitmq/amqp091-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	busv1 "example.com/program/gen/postbus/bus/v1"
	postsv1 "example.com/program/gen/postbus/posts/v1"
	"example.com/program/gen/postbus/posts/v1/postsv1connect"
	usersv1 "example.com/program/gen/postbus/users/v1"
)

const (
	getUsers = "postbus.users.v1.UsersService.BatchGetUsers"
	unknown  = "00000000-0000-7000-8000-000000000000"
)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(command string, arguments []string) error {
	if command == "connect" {
		return callByConnect(arguments[0], arguments[1])
	}
	bus, err := Open(arguments[0])
	if err != nil {
		return err
	}
	if command == "serve" {
		return serve(bus)
	}
	return call(bus, arguments[1], arguments[2])
}

// posts serves one post for each user that has registered; its author's name comes from `users`.
type posts struct {
	bus     *Bus
	authors sync.Map // ids
}

func serve(bus *Bus) error {
	service := &posts{bus: bus}
	if err := Consume(bus, "postbus.users.v1.UserRegistered", service.onRegistered); err != nil {
		return err
	}
	err := Serve(bus, map[string]Handler{
		"postbus.posts.v1.PostsService.GetPost":             service.getPost,
		"postbus.bus.v1.HealthService.Check." + bus.service: check,
	})
	if err != nil {
		return err
	}
	fmt.Println("READY")
	lost := bus.connection.NotifyClose(make(chan *amqp.Error, 1))
	return <-lost
}

func (service *posts) onRegistered(event *busv1.Event) error {
	registered := &usersv1.UserRegistered{}
	if err := proto.Unmarshal(event.Data, registered); err != nil {
		return err
	}
	service.authors.Store(registered.UserId, true) // once, however often it is delivered
	return nil
}

func (service *posts) getPost(ctx context.Context, body []byte) ([]byte, error) {
	request := &postsv1.GetPostRequest{}
	if err := proto.Unmarshal(body, request); err != nil {
		return nil, CallError{failure(busv1.Code_CODE_INVALID_ARGUMENT, "MALFORMED_MESSAGE", "Malformed.")}
	}
	if _, found := service.authors.Load(request.Id); !found {
		return nil, CallError{failure(busv1.Code_CODE_NOT_FOUND, "POST_NOT_FOUND", "There is no such post.")}
	}
	username, err := service.bus.usernameOf(ctx, request.Id)
	if err != nil {
		return nil, err
	}
	author := &postsv1.Author{Id: request.Id, Username: username}
	post := &postsv1.Post{Id: request.Id, Title: "From Go", Author: author, Version: 1}
	return proto.Marshal(&postsv1.GetPostResponse{Post: post})
}

func check(context.Context, []byte) ([]byte, error) {
	now := timestamppb.New(time.Now().Truncate(time.Microsecond))
	return proto.Marshal(&busv1.CheckResponse{Time: now})
}

func (bus *Bus) usernameOf(ctx context.Context, id string) (string, error) {
	found := &usersv1.BatchGetUsersResponse{}
	if err := bus.Call(ctx, getUsers, &usersv1.BatchGetUsersRequest{Ids: []string{id}}, found); err != nil {
		return "", err
	}
	return found.Profiles[0].Username, nil
}

func call(bus *Bus, gateway, id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var rest struct {
		Title  string
		Author struct{ Username string }
	}
	response, err := http.Get(gateway + "/v1/posts/" + id)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if err = json.NewDecoder(response.Body).Decode(&rest); err != nil {
		return err
	}
	client := postsv1connect.NewPostsServiceClient(http.DefaultClient, gateway)
	found, err := client.GetPost(ctx, connect.NewRequest(&postsv1.GetPostRequest{Id: id}))
	if err != nil {
		return err
	}
	_, missing := client.GetPost(ctx, connect.NewRequest(&postsv1.GetPostRequest{Id: unknown}))
	username, err := bus.usernameOf(ctx, id)
	if err != nil {
		return err
	}
	_, invalid := bus.usernameOf(ctx, "not a UUID")
	unserved := bus.Call(ctx, "postbus.users.v1.UsersService.Unserved", &usersv1.BatchGetUsersRequest{}, nil)
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"rest":     []string{rest.Title, rest.Author.Username},
		"connect":  []string{found.Msg.Post.Title, found.Msg.Post.Author.Username},
		"missing":  connect.CodeOf(missing).String(),
		"amqp":     username,
		"invalid":  reasonOf(invalid),
		"unserved": reasonOf(unserved),
	})
}

func reasonOf(err error) string {
	var failed CallError
	errors.As(err, &failed)
	return failed.cause.GetReason()
}
