<?php declare(strict_types=1);
// What the conformance service (../../conformance/spec.md) does, whatever the framework: SQL, the card network.

use IdempotencyPg\{Answer, Attempt, Client, Http, NothingHappened, Route};

foreach (['Client', 'Result', 'Errors', 'Answer', 'Leased', 'Http'] as $file) require_once __DIR__ . "/../src/$file.php";

/** The client's fault, found before any work. */
final class BadRequest extends Exception {}

final class Shop {
    public readonly Client $client;

    public function __construct() {
        // A worker of php-fpm keeps its connection from request to request. libpq takes PG* from the environment.
        $options = [PDO::ATTR_PERSISTENT => true, PDO::ATTR_TIMEOUT => 5, PDO::PGSQL_ATTR_DISABLE_PREPARES => true];
        $this->client = new Client(fn () => new PDO('pgsql:', null, null, $options), (int) getenv('WORKERS'), getenv('LOCKS'));
    }

    /** @param Closure $user of a request of the framework's
      * @param Closure $body the bytes of its body */
    public function http(Closure $user, Closure $body): Http {
        return new Http($this->client, fn ($request) => 'shop:' . $user($request), [
            'POST /orders' => new Route(),
            'POST /waiting-orders' => new Route(wait: getenv('WAIT')),
            'POST /orders/{id}/refunds' => new Route(),
            'POST /blobs' => new Route(),
            'POST /charges' => new Route(work: $this->charge(...), lease: getenv('LEASE'), step: 'charge', holdIfAbandoned: false,
                state: fn ($request) => ['account' => $user($request), 'amount' => self::parsed($body($request), 'amount')['amount']]),
        ]);
    }

    /** NAME of "Bearer NAME". */
    public static function user(string $authorization): ?string {
        return preg_match('/^Bearer (\S+)$/', $authorization, $match) ? $match[1] : null;
    }

    /** The body as a JSON object with this member as a whole number. */
    public static function parsed(string $bytes, ?string $member = null): array {
        $body = json_decode($bytes);
        if (!$body instanceof stdClass || ($member && !is_int($body->$member ?? null))) throw new BadRequest('the body lacks what is needed');
        return (array) $body;
    }

    private function query(string $sql, mixed ...$values): mixed {
        $statement = $this->client->db()->prepare($sql);
        $statement->execute($values);
        return $statement->columnCount() ? $statement->fetchColumn() : null;
    }

    /** Whatever is asked for, but charges, which are the middleware's. */
    public function answer(string $method, string $path, ?string $user, string $body, Closure $header): Answer {
        if ("$method $path" === 'GET /health') return $this->health();
        if ($user === null) return new Answer(401, ['error' => 'who is it?']);
        return match (true) {
            "$method $path" === 'POST /orders', "$method $path" === 'POST /waiting-orders' => $this->order($user, $body, $header('X-Fail')),
            "$method $path" === 'POST /blobs' => $this->blob($user, $body, $header),
            "$method $path" === 'GET /orders' => new Answer(200, ['orders' => $this->query('SELECT count(*) FROM shop.orders WHERE account = ?', $user)]),
            "$method $path" === 'GET /visits' => $this->visit($user),
            preg_match('~^POST /orders/(\d+)/refunds$~', "$method $path", $id) === 1 => $this->refund($user, $id[1], $body),
            default => new Answer(404, ['error' => 'no such page']),
        };
    }

    private function insert(string $user, mixed $item): int {
        return $this->query('INSERT INTO shop.orders (account, item) VALUES (?, ?) RETURNING id', $user, $item);
    }

    private function order(string $user, string $body, string $fault): Answer {
        $order = self::parsed($body, 'item');
        if ($fault === 'refuse') return new Answer(402, ['refused' => true]);
        $id = $this->insert($user, $order['item']);
        usleep(1000 * ($order['pause_ms'] ?? 0));
        if ($fault === 'throw') throw new Exception('the handler was asked to throw');
        if ($fault === '503') return new Answer(503, ['error' => 'the handler was asked to answer so']);
        return new Answer(201, ['order' => $id], ['Location' => "/orders/$id", 'Link' => ['</a>; rel=a', '</b>; rel=b'],
            'Set-Cookie' => 'session=' . bin2hex(random_bytes(8)), 'X-Request' => bin2hex(random_bytes(8))]);
    }

    private function refund(string $user, string $id, string $body): Answer {
        self::parsed($body);
        return new Answer(201, ['refund' => $this->insert($user, $id)]);
    }

    private function blob(string $user, string $body, Closure $header): Answer {
        $this->insert($user, 0);
        return new Answer(201, $body, array_filter(['Content-Type' => $header('Content-Type'), 'Content-Encoding' => $header('Content-Encoding')]));
    }

    private function visit(string $user): Answer {
        $this->query('INSERT INTO shop.visits (account) VALUES (?)', $user);
        return new Answer(200, ['visits' => $this->query('SELECT count(*) FROM shop.visits WHERE account = ?', $user)]);
    }

    /** For a load balancer. */
    private function health(): Answer {
        try {
            $healthy = !$this->query("SELECT count(*) FROM idempotency.health() WHERE status = 'critical'");
        } catch (PDOException) {
            $healthy = false;
        }
        return new Answer($healthy ? 200 : 503, ['healthy' => $healthy]);
    }

    /** POST /charges: asks the card network with the effect key, and beats while it waits. */
    public function charge(Attempt $attempt): Answer {
        ['account' => $account, 'amount' => $amount] = $attempt->claim->state;
        $this->ask($attempt, "/before?key=$attempt->effectKey");
        $order = json_encode(['key' => $attempt->effectKey, 'amount' => $amount]);
        [$status, $answer] = $this->ask($attempt, '/charges',
            [CURLOPT_POSTFIELDS => $order, CURLOPT_HTTPHEADER => ['Content-Type: application/json'], CURLOPT_TIMEOUT => (int) getenv('NETWORK_TIMEOUT')]);
        if ($status === 402) return new Answer(402, ['declined' => true]);
        if ($status !== 200) throw new Exception("the network answered $status: $answer");
        $charge = json_decode($answer, true)['charge'];
        try {
            $this->ask($attempt, "/after?key=$attempt->effectKey");
        } catch (Exception) { // it is charged already
        }
        return new Answer(201, ['charge' => $charge],
            book: fn () => $this->query('INSERT INTO shop.payments (account, charge, amount) VALUES (?, ?, ?)', $account, $charge, $amount));
    }

    private function ask(Attempt $attempt, string $path, array $options = []): array {
        $curl = curl_init(getenv('NETWORK_URL') . $path);
        curl_setopt_array($curl, $options + [CURLOPT_RETURNTRANSFER => true, CURLOPT_NOPROGRESS => false,
            CURLOPT_XFERINFOFUNCTION => fn () => $attempt->beat() ? 0 : 1]);
        $answer = curl_exec($curl);
        if (curl_errno($curl) === CURLE_COULDNT_CONNECT) throw new NothingHappened(curl_error($curl));
        return $answer === false ? throw new Exception(curl_error($curl)) : [curl_getinfo($curl, CURLINFO_RESPONSE_CODE), $answer];
    }
}
