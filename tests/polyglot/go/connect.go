package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"

	"connectrpc.com/connect"

	postsv1 "example.com/program/gen/postbus/posts/v1"
	"example.com/program/gen/postbus/posts/v1/postsv1connect"
)

// callByConnect calls methods of `posts` as a user, in both formats; prints the results as JSON.
func callByConnect(gateway, token string) error {
	for name, options := range map[string][]connect.ClientOption{
		"binary": {connect.WithHTTPGet(), connect.WithSendGzip()},
		"json":   {connect.WithHTTPGet(), connect.WithProtoJSON()},
	} {
		results, err := connectResults(gateway, token, options)
		if err != nil {
			return err
		}
		results["name"] = name
		if err = json.NewEncoder(os.Stdout).Encode(results); err != nil {
			return err
		}
	}
	return nil
}

func connectResults(gateway, token string, options []connect.ClientOption) (map[string]any, error) {
	ctx := context.Background()
	posts := postsv1connect.NewPostsServiceClient(http.DefaultClient, gateway, options...)
	created, err := posts.CreatePost(ctx, as(token, &postsv1.CreatePostRequest{
		Title: "Hé", Body: strings.Repeat("b", 3000), Tags: []string{"tea"},
	}))
	if err != nil {
		return nil, err
	}
	found, err := posts.GetPost(ctx, as(token, &postsv1.GetPostRequest{Id: created.Msg.Post.Id}))
	if err != nil {
		return nil, err
	}
	cases, err := exported(ctx, gateway, token, options)
	if err != nil {
		return nil, err
	}
	_, invalid := posts.CreatePost(ctx, as(token, &postsv1.CreatePostRequest{}))
	_, anonymous := posts.CreatePost(ctx, as("", &postsv1.CreatePostRequest{Title: "x"}))
	_, missing := posts.GetPost(ctx, as("", &postsv1.GetPostRequest{Id: "none"}))
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, cancelled := posts.GetPost(ended, as("", &postsv1.GetPostRequest{Id: "none"}))
	return map[string]any{
		"title":     found.Msg.Post.Title,
		"body":      len(found.Msg.Post.Body),
		"cases":     cases,
		"invalid":   shown(invalid),
		"anonymous": shown(anonymous),
		"missing":   shown(missing),
		"cancelled": shown(cancelled),
	}, nil
}

// exported returns the kinds of the items in the export of the user, a stream.
func exported(ctx context.Context, gateway, token string, options []connect.ClientOption) ([]string, error) {
	client := postsv1connect.NewExportServiceClient(http.DefaultClient, gateway, options...)
	stream, err := client.ExportMe(ctx, as(token, &postsv1.ExportMeRequest{}))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var cases []string
	for stream.Receive() {
		item := stream.Msg().ProtoReflect()
		set := item.WhichOneof(item.Descriptor().Oneofs().Get(0))
		cases = append(cases, string(set.Name()))
	}
	slices.Sort(cases)
	return slices.Compact(cases), stream.Err()
}

func as[T any](token string, message *T) *connect.Request[T] {
	request := connect.NewRequest(message)
	if token != "" {
		request.Header().Set("Authorization", "Bearer "+token)
	}
	return request
}

func shown(err error) map[string]any {
	details := []string{}
	var failed *connect.Error
	if errors.As(err, &failed) {
		for _, detail := range failed.Details() {
			details = append(details, detail.Type())
		}
	}
	return map[string]any{"code": connect.CodeOf(err).String(), "details": details}
}
