// Command awsclient asks the metadata service as a program does that was written with the AWS SDK for Go: for the tests.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"

	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: awsclient credentials|region")
	}
	// The SDK waits for half a second, and then goes on without a token: a machine that is busy with tests may take longer.
	client := imds.New(imds.Options{HTTPClient: http.DefaultClient, DisableDefaultTimeout: true})
	switch os.Args[1] {
	case "credentials":
		c, err := ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = client }).Retrieve(context.Background())
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(c.AccessKeyID, c.SecretAccessKey, c.SessionToken)
	case "region":
		r, err := client.GetRegion(context.Background(), nil)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(r.Region)
	default:
		log.Fatalf("%q is neither credentials nor region", os.Args[1])
	}
}
