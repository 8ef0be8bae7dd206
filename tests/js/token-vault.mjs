// Auth0's own SDK as a client of Token Vault: one exchange per line of stdin, one JSON answer per line of stdout.
import { createInterface } from 'node:readline';
import { readFileSync } from 'node:fs';
import { AuthClient } from '@auth0/auth0-auth-js';

const { DOMAIN, CLIENT_ID, CLIENT_SECRET, KEY_FILE } = process.env;
const clients = {
  secret: () => new AuthClient({ domain: DOMAIN, clientId: CLIENT_ID, clientSecret: CLIENT_SECRET }),
  key: () =>
    new AuthClient({
      domain: DOMAIN,
      clientId: CLIENT_ID,
      clientAssertionSigningKey: readFileSync(KEY_FILE, 'utf8'),
      clientAssertionSigningAlg: 'RS256',
    }),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { client, ...options } = JSON.parse(line);
  try {
    const token = await clients[client]().exchangeToken(options);
    console.log(JSON.stringify({ accessToken: token.accessToken, expiresAt: token.expiresAt }));
  } catch (error) {
    console.log(JSON.stringify({ error: error.cause?.error ?? String(error), status: error.statusCode, cause: String(error.cause) }));
  }
}
