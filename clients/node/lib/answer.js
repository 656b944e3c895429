// An answer is { status, headers, body }: what of it is recorded, and how it comes back byte for byte.
import { isUtf8 } from 'node:buffer';
// About the connection, the moment or the session: never replayed.
const PASSING = /^(set-cookie|date|content-length|connection|transfer-encoding|keep-alive|server|idempotent-replayed)$/i;

/** Headers as a list of pairs, body as bytes: text and bytes are taken as they are, every other value is made JSON. */
export function normal({ status, headers, body }) {
  const list = (Array.isArray(headers) ? headers : Object.entries(headers ?? {}))
    .flatMap(([name, value]) => [value].flat().map((one) => [name, String(one)]));
  const json = (body ?? null) !== null && typeof body !== 'string' && !(body instanceof Uint8Array);
  if (json && !list.some(([name]) => /^content-type$/i.test(name))) list.push(['Content-Type', 'application/json; charset=utf-8']);
  return { status: status ?? 200, headers: list, body: Buffer.from(json ? JSON.stringify(body) : body ?? '') };
}

/** As arguments of complete(): text where it is text, so that a person can read the row; bytes otherwise. */
export function recorded(answer) {
  const { status, headers, body } = normal(answer);
  const of = (wanted) => headers.find(([name]) => name.toLowerCase() === wanted)?.[1];
  const text = (typeof answer.body === 'string' || /^text\/|[/+](json|xml)\b/i.test(of('content-type')))
    && !of('content-encoding') && isUtf8(body) && !body.includes(0);
  const kept = { responseStatus: status, responseHeaders: headers.filter(([name]) => !PASSING.test(name)) };
  return body.length === 0 ? kept : text ? { ...kept, responseBody: body.toString() } : { ...kept, responseBytes: body };
}
