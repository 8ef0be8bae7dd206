// A real OpenID provider over https, for the tests: client credentials, opaque and JWT access tokens, introspection.
//
//   node provider.mjs CERTIFICATE.pem KEY.pem
//
// Prints {"issuer", "kid"} when it listens. A line `rotate` on its standard input puts a new signing key before the old
// ones, `retire` takes the old ones away; each prints the same again. It ends when its standard input does.
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import https from 'node:https';
import readline from 'node:readline';
import Provider from 'oidc-provider';

const [certificate, key] = process.argv.slice(2).map((file) => readFileSync(file));

function signingKey() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'RS256' };
}

let keys = [signingKey()];
let handler;

function serve(issuer) {
  const provider = new Provider(issuer, {
    jwks: { keys },
    clients: [
      {
        client_id: 'agent',
        client_secret: process.env.CLIENT_SECRET,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
        token_endpoint_auth_method: 'client_secret_basic',
      },
    ],
    scopes: ['read', 'write'],
    features: {
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true },
      revocation: { enabled: true, allowedPolicy: () => true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => ({
          scope: 'read write',
          audience: resource,
          accessTokenTTL: 600,
          accessTokenFormat: resource.endsWith('/jwt') ? 'jwt' : 'opaque',
          jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
  });
  handler = provider.callback();
  console.log(JSON.stringify({ issuer, kid: keys[0].kid }));
}

const server = https.createServer({ cert: certificate, key }, (request, response) => handler(request, response));
server.listen(0, '127.0.0.1', () => {
  const issuer = `https://127.0.0.1:${server.address().port}`;
  serve(issuer);
  const lines = readline.createInterface({ input: process.stdin });
  lines.on('line', (line) => {
    keys = line === 'rotate' ? [signingKey(), ...keys] : keys.slice(0, 1);
    serve(issuer);
  });
  lines.on('close', () => process.exit(0));
});
