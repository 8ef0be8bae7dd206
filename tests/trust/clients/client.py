"""For each line of input one request, and a line on how it went. usage: client.py LIBRARY HOST TOKEN"""
import asyncio
import ssl
import sys
import urllib.request

library, host, token = sys.argv[1:]
url = f"https://{host}/user"
headers = {"Authorization": f"Bearer {token}"}
TIMEOUT = 60


def urllib_with(**more):
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT, **more) as answer:
        return answer.status, answer.read().decode()


if library == "urllib":
    ask = urllib_with
elif library == "urllib, context kept":
    context = ssl.create_default_context()

    def ask():
        return urllib_with(context=context)
elif library == "requests":
    import requests

    session = requests.Session()

    def ask():
        answer = session.get(url, headers=headers, timeout=TIMEOUT)
        return answer.status_code, answer.text
elif library.startswith("httpx"):
    import httpx

    client = httpx.Client() if library.endswith("kept") else httpx

    def ask():
        answer = client.get(url, headers=headers, timeout=TIMEOUT)
        return answer.status_code, answer.text
elif library == "aiohttp":
    import aiohttp

    async def once():
        async with aiohttp.ClientSession() as session:
            async with session.get(url, headers=headers) as answer:
                return answer.status, await answer.text()

    def ask():
        return asyncio.run(once())
elif library == "grpcio":
    import grpc

    def ask():
        with grpc.secure_channel(f"{host}:443", grpc.ssl_channel_credentials()) as channel:
            call = channel.unary_unary("/tv.Echo/Unary")
            metadata = [("authorization", f"Bearer {token}")]
            return 200, call(b"echo", metadata=metadata, timeout=TIMEOUT).decode()


for _ in sys.stdin:
    try:
        status, body = ask()
        print(status, " ".join(body.split()), flush=True)
    except Exception as error:
        print("error", " ".join(repr(error).split()), flush=True)
