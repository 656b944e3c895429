<?php declare(strict_types=1);
// The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07) on the calls of the client, for any framework. An adapter
// says what was asked and how its handler is run, and sends the answer that it gets. That is not before COMMIT has succeeded, so no
// client is told what was undone.
namespace IdempotencyPg;
use Closure, LogicException, RuntimeException, Throwable;

/** What is different for one operation. A duplicate waits so long, instead of a 409 at once. With $work it is leased. The closures are
  * given the request: $compare gives a value to compare instead of the body's bytes, $state what $work needs, the completer's included. */
final class Route {
    public function __construct(public readonly bool $required = true, public readonly ?string $wait = null,
        public readonly ?string $ttl = null, public readonly ?Closure $compare = null, public readonly ?Closure $work = null,
        public readonly ?Closure $state = null, public readonly string $lease = '1 min', public readonly ?string $step = null,
        public readonly ?bool $holdIfAbandoned = null) {}
}

final class Http {
    // The draft has the first three titles. Who gets a Retry-After may send the same request again; nobody else is invited to.
    private const PROBLEMS = [
        'missing' => [400, 'Idempotency-Key is missing', 'This operation needs the header Idempotency-Key: one key for each intent.'],
        'mismatch' => [422, 'Idempotency-Key is already used', 'The key was used for another request, which may have taken effect.'],
        'in-progress' => [409, 'A request is outstanding for this Idempotency-Key', 'A request with this key is being processed.'],
        'malformed' => [400, 'Idempotency-Key is malformed', 'The header is one string of 1 to 255 printable ASCII characters: "k" or k.'],
        'held' => [409, 'The outcome for this Idempotency-Key is unknown', 'Whether the first request took effect is being looked into.'],
        'redacted' => [410, 'The answer for this Idempotency-Key is gone', 'The request was done, and its answer was removed.'],
        'too-large' => [500, 'The answer for this Idempotency-Key is too large', 'It cannot be recorded, and a repeat would fail again.'],
        'unavailable' => [503, 'Idempotency-Key cannot be checked now', 'Send the same request with the same key again later.']];
    private const AS = ['failed' => 'unavailable', 'retry' => 'unavailable', 'wait_timeout' => 'in-progress',
        'stale_claim' => 'in-progress'];
    // RFC 8941: a string with its escapes, or a token, as many clients send it. Parameters are read over.
    private const STRING = '"((?:[ !#-\[\]-~]|\\\\["\\\\])*)"', TOKEN = '[!#-+\--:<-~]+';

    /** @param Closure $scope (request): the account that was authenticated
      * @param array<string, Route> $routes by method and template, 'POST /orders/{id}/refunds'; other requests are not touched
      * @param string $documentation the page that problems point to */
    public function __construct(private Client $client, private Closure $scope, private array $routes,
        private string $documentation = 'https://developer.example.com/idempotency', private bool $lifetimeHeader = false) {}

    /** The key of the header's lines, "k" and k alike. */
    public static function parseKey(array $lines): ?string {
        $item = sprintf('/^(?:%s|(%s))(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:%1$s|%2$s))?)*$/D', self::STRING, self::TOKEN);
        if (count($lines) !== 1 || !preg_match($item, trim($lines[0], " \t"), $match)) return null;
        $key = ($match[2] ?? '') !== '' ? $match[2] : preg_replace('/\\\\(.)/', '$1', $match[1]);
        return $key !== '' && strlen($key) <= 255 ? $key : null;
    }
    /** @return ?array{string, Route, array<string, string>} operation, what holds for it, and the parameters of the path */
    public function find(string $method, string $path): ?array {
        foreach ($this->routes as $operation => $route) {
            $pattern = preg_replace('/\\\\\{(\w+)\\\\\}/', '(?<$1>[^\/]+)', preg_quote($operation, '/'));
            if (!preg_match("/^$pattern$/D", "$method $path", $match)) continue;
            return [$operation, $route, array_map(rawurldecode(...), array_filter($match, is_string(...), ARRAY_FILTER_USE_KEY))];
        }
        return null;
    }
    /** The answer, for what find() has found, after COMMIT; null where the request is not to be touched. $run() gives the handler's. */
    public function answer(array $found, object $request, array $lines, string $body, int $length, callable $run): ?Answer {
        [$operation, $route, $params] = $found;
        if (!$route->required && $lines === []) return null;
        $scope = ($this->scope)($request) ?: throw new LogicException('scope() gave nothing: authenticate before');
        $key = self::parseKey($lines);
        if ($key === null) return $this->problem($lines === [] ? 'missing' : 'malformed');
        if (!$route->compare && $body === '' && $length > 0) { // of multipart/form-data; nothing would be compared
            throw new LogicException('PHP has kept the bytes of the body: give "compare", or set enable_post_data_reading to 0');
        }
        [$id, $undone, $asked] = [new Id($scope, $operation, $key), null, ['params' => $params, 'ttl' => $route->ttl]];
        $asked += $route->compare ? ['request' => ($route->compare)($request)] : ['body' => $body];
        try {
            if ($route->work) {
                $asked += ['lease' => $route->lease, 'holdIfAbandoned' => $route->holdIfAbandoned];
                $asked += ['state' => $route->state ? ($route->state)($request) : null];
                $result = (new Leased($this->client))->run($id, $route->work, $route->wait, $route->step, ...$asked);
            } else {
                $result = $this->client->transaction(function () use ($id, $route, $asked, $run, &$undone) {
                    $claim = $this->client->capped($route->wait, fn ($wait) => $this->client->claim($id, ...$asked, wait: $wait));
                    if ($claim->outcome !== Outcome::Claimed) return $claim;
                    $claim->answer = $run();
                    $undone = $claim->answer->status >= 500 ? $claim->answer : null; // which is answered, and not recorded
                    if ($undone) throw new RuntimeException('rolls back');
                    $claim->expiresAt = $this->client->complete($id, $claim->answer);
                    return $claim;
                });
            }
        } catch (Throwable $error) { // what is no problem of the key's is the framework's, as if this were not here
            return $undone ?? $this->problem(Errors::kind($error)) ?? throw $error;
        }
        $answer = $result->answer ?? $this->withoutWork($result);
        if (!$this->lifetimeHeader || !$result->expiresAt) return $answer;
        return $answer->with(['Idempotency-Key-Expires', gmdate('D, d M Y H:i:s \G\M\T', $result->expiresAt->getTimestamp())]);
    }
    private function withoutWork(Result $result): Answer {
        if ($result->outcome !== Outcome::Replay) return $this->problem($result->outcome->value, $result->retryAfterMs ?? 0);
        $body = $result->responseBytes ?? $result->responseBody ?? '';
        return (new Answer($result->responseStatus ?? 200, $body, $result->responseHeaders ?? []))->with(['Idempotent-Replayed', 'true']);
    }
    private function problem(string $kind, int $milliseconds = 0): ?Answer {
        $name = self::AS[$kind] ?? str_replace('_', '-', $kind);
        [$status, $title, $detail] = self::PROBLEMS[$name] ?? [0, '', ''];
        $headers = ['Content-Type' => 'application/problem+json', 'Content-Language' => 'en'];
        if ($status === 400) $headers['Link'] = "<$this->documentation>; rel=\"describedby\"; type=\"text/html\"";
        if (in_array($name, ['in-progress', 'unavailable'], true)) $headers['Retry-After'] = max(1, (int) ceil($milliseconds / 1000));
        $body = ['type' => "$this->documentation#$name", 'title' => $title, 'status' => $status, 'detail' => $detail];
        return $status ? new Answer($status, $body, $headers) : null;
    }
}
