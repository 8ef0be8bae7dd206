# Programs that make one request and end: for each line of input one run, and a line on how it went.
# usage: sh commands.sh NAME PLACE TOKEN, with PLACE being a host, and a directory of its own as HOME
name=$1 host=$2 token=$3
request="GET /user HTTP/1.1\r\nHost: $host\r\nAuthorization: Bearer $token\r\nConnection: close\r\n\r\n"

run() {
    case $name in
    curl) curl --silent --show-error --fail --header "Authorization: Bearer $token" "https://$host/user" ;;
    wget) wget --no-verbose --tries=1 --output-document=- --header "Authorization: Bearer $token" "https://$host/user" ;;
    git)
        rm -rf "$HOME/clone"
        git -c credential.helper="!f() { echo username=x-access-token; echo password=$token; }; f" \
            clone --quiet "https://$host/acme/demo.git" "$HOME/clone" && git -C "$HOME/clone" rev-parse HEAD
        ;;
    gh) GH_TOKEN=$token gh api user ;;
    # The virtual environment's own pip, with its own certifi.
    pip)
        "$PYTHON" -m pip --verbose --disable-pip-version-check --no-cache-dir --retries 0 --no-input \
            index versions --index-url "https://x-access-token:$token@$host/simple" tv-demo
        ;;
    openssl)
        printf "$request" | openssl s_client -quiet -verify_return_error -verify_hostname "$host" \
            -servername "$host" -connect "$host:443"
        ;;
    gnutls-cli)
        # Ends when its input does, which stays open until the answer is there.
        { printf "$request"; read -r _ <"$HOME/done"; } | {
            gnutls-cli --logfile="$HOME/log" "$host"
            code=$?
            cat "$HOME/log" >&2
            echo >"$HOME/done"
            exit $code
        }
        ;;
    *) echo "no such command" >&2; exit 2 ;;
    esac
}

[ -p "$HOME/done" ] || mkfifo "$HOME/done"
while read -r _; do
    if run >"$HOME/answer" 2>"$HOME/said"; then
        echo "200 $(tr '\r\n' '  ' <"$HOME/answer")"
    else
        echo "error $(cat "$HOME/said" "$HOME/answer" | tr '\r\n' '  ')"
    fi
done
