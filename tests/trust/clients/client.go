// For each line of input one request, and a line on how it went. usage: client HOST TOKEN
package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

func ask(host, token string) (string, error) {
	request, err := http.NewRequest("GET", "https://"+host+"/user", nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return fmt.Sprint(answer.StatusCode, " ", string(body)), err
}

func main() {
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		line, err := ask(os.Args[1], os.Args[2])
		if err != nil {
			line = "error " + err.Error()
		}
		fmt.Println(strings.Join(strings.Fields(line), " "))
	}
}
