<?php declare(strict_types=1);
// The calls of the extension, with typed outcomes. A PHP process has one connection, and all calls are made on it, in the transaction
// that is open there. So is what the work writes, through db().
namespace IdempotencyPg;
use Closure, DateTimeImmutable, LogicException, PDO, Throwable;

final class Client {
    // Every parameter is cast, and JSON goes and comes as text, so that no setting of the connection changes what is compared.
    private const TYPES = ['text' => 'scope operation key command error reason note waitFor recoveryPoint step responseBody',
        'interval' => 'ttl lease wait retryIn', 'text::jsonb' => 'state args responseHeaders', 'bytea' => 'responseBytes fingerprint',
        'int' => 'responseStatus maxRows', 'bigint' => 'token', 'uuid' => 'claimId', 'boolean' => 'holdIfAbandoned refuseRepeat'];
    private const REPLAY = "jsonb_build_object('outcome', 'replay')";
    private const LEFT = "jsonb_build_object('lease_ms', extract(epoch FROM result.locked_until - clock_timestamp()) * 1000)";
    private ?object $db = null;
    private bool $inTransaction = false;

    /** @param Closure(): object $connect gives a PDO, or Doctrine's or Laravel's Connection on one; is asked again when that is lost
      * @param int $workers how many processes like this one share the folder $locks; at most half of them wait in a claim */
    public function __construct(private Closure $connect, private int $workers = 0, private ?string $locks = null) {}

    public function claim(Id $id, mixed ...$options): Result { return $this->claiming('claim', $id, ...$options); }
    public function run(Id $id, string $command, mixed ...$o): Result { return $this->claiming('run', $id, ...$o, command: $command); }
    public function fail(Id $id, mixed ...$options): bool { return $this->call('fail', $id, $options)[0]; }
    public function recordFailure(Id $id, mixed ...$options): bool { return $this->call('record_failure', $id, $options)[0]; }
    public function release(Id $id, mixed ...$options): bool { return $this->call('release', $id, $options)[0]; }
    public function once(Id $id, mixed ...$options): bool { return $this->call('once', $id, $options)[0]; }
    public function hold(Id $id, mixed ...$options): int { return $this->call('hold', $id, $options)[0]; }
    public function effectKey(Id $id, ?string $step = null): string { return $this->call('effect_key', $id, ['step' => $step])[0]; }
    public function lookup(Id $id): ?Result { return Result::all($this->call('lookup', $id, []))[0] ?? null; }
    public function replay(Id $id): ?Result { return Result::all($this->call('replay', $id, [], self::REPLAY))[0] ?? null; }
    public function claimAbandoned(mixed ...$o): array { return Result::all($this->call('claim_abandoned', null, $o, self::LEFT)); }
    public function extend(Id $id, mixed ...$options): ?DateTimeImmutable { return Result::time($this->call('extend', $id, $options)[0]); }
    public function checkpoint(Id $id, string $recoveryPoint, mixed ...$options): ?DateTimeImmutable {
        return Result::time($this->call('checkpoint', $id, ['recoveryPoint' => $recoveryPoint] + $options)[0]);
    }
    public function complete(Id $id, ?Answer $answer = null, mixed ...$options): ?DateTimeImmutable {
        return Result::time($this->call('complete', $id, ($answer?->recorded() ?? []) + $options)[0]);
    }

    // The request is given to notice a key that is used for another one: $body as it came, or $request, a value that is made JSON here,
    // once. Either goes through fingerprint_bytes(), which also takes what jsonb refuses. Path parameters are part of it. Null would
    // switch the comparison off without a word; that has to be said: compare: false.
    private function claiming(string $name, Id $id, mixed $request = null, ?string $body = null, array $params = [], bool $compare = true,
        mixed ...$options): Result {
        $none = !$compare || isset($options['fingerprint']);
        if (is_string($request) || (!$none && $request === null && $body === null)) {
            throw new LogicException("$name: no request; give request (a value, not JSON text), body (bytes or text) or compare: false");
        }
        [$digest, $bytes] = ['idempotency.fingerprint_bytes(?::bytea)', [$body ?? self::json($request), PDO::PARAM_LOB]];
        $both = "request => jsonb_build_object('params', ?::text::jsonb, 'body', encode($digest, 'hex'))";
        $given = $params ? [$both => [[self::json($params), PDO::PARAM_STR], $bytes]] : ["fingerprint => $digest" => [$bytes]];
        return Result::of($this->call($name, $id, $options, self::LEFT, $none ? [] : $given)[0] + get_object_vars($id));
    }
    private function call(string $name, ?Id $id, array $options, ?string $more = null, array $arguments = []): array {
        foreach (($id ? get_object_vars($id) : []) + $options as $option => $value) {
            $types = array_filter(self::TYPES, fn (string $names) => in_array($option, explode(' ', $names), true));
            $type = array_key_first($types) ?? throw new LogicException("$name: unknown option $option");
            if ($value === null) continue; // what is not given is not named, so that the server's defaults and the policies hold
            $value = match ($type) { 'text::jsonb' => self::json($value), 'boolean' => $value ? 't' : 'f', default => (string) $value };
            $argument = strtolower(preg_replace('/[A-Z]/', '_$0', $option)) . " => ?::$type";
            $arguments[$argument] = [[$value, $type === 'bytea' ? PDO::PARAM_LOB : PDO::PARAM_STR]];
        }
        $sql = sprintf('SELECT %s FROM idempotency.%s(%s) AS result', $more ? "to_jsonb(result) || $more" : 'to_json(result)', $name,
            implode(', ', array_keys($arguments)));
        // Never a named statement, which pgbouncer before 1.21 would not find again, and no literals, whatever PDO is set to.
        $statement = self::pdo($this->db())->prepare($sql, [PDO::PGSQL_ATTR_DISABLE_PREPARES => true, PDO::ATTR_EMULATE_PREPARES => false]);
        foreach (array_merge(...array_values($arguments)) as $i => [$value, $type]) $statement->bindValue($i + 1, $value, $type);
        $statement->execute();
        $rows = $statement->fetchAll(PDO::FETCH_COLUMN);
        return array_map(fn (?string $row) => json_decode($row ?? 'null', true, flags: JSON_THROW_ON_ERROR), $rows);
    }
    public static function json(mixed $value): string {
        return json_encode($value, JSON_THROW_ON_ERROR | JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE | JSON_PRESERVE_ZERO_FRACTION);
    }

    /** What $connect gave; anew if that was lost, but never within a transaction, of which half would be gone. */
    public function db(): object {
        $lost = $this->db && self::pdo($this->db)->getAttribute(PDO::ATTR_CONNECTION_STATUS) === 'Bad connection.';
        if ($this->db && (!$lost || $this->inTransaction)) return $this->db;
        $this->db = ($this->connect)();
        self::pdo($this->db)->setAttribute(PDO::ATTR_ERRMODE, PDO::ERRMODE_EXCEPTION); // a COMMIT that failed must not go unnoticed
        return $this->db;
    }
    private static function pdo(object $db): PDO {
        return $db instanceof PDO ? $db : (method_exists($db, 'getNativeConnection') ? $db->getNativeConnection() : $db->getPdo());
    }

    /** $work(db()) and COMMIT; all of it again where the server asks for that. */
    public function transaction(callable $work): mixed {
        return self::again(['retry'], function () use ($work) {
            self::again(['unavailable'], fn () => $this->db()->beginTransaction(), 2); // what was lost while it was idle is replaced
            try {
                $this->inTransaction = true;
                $result = $work($this->db);
                self::pdo($this->db)->exec('SELECT'); // fails where an error was swallowed: COMMIT would succeed, and have rolled back
                $this->db->commit();
                return $result;
            } catch (Throwable $error) {
                try { $this->db->rollBack(); } catch (Throwable) {} // it is over already: COMMIT failed, or the connection is lost
                throw $error;
            } finally { $this->inTransaction = false; }
        });
    }
    /** Once more after an error of one of these kinds, with growing pauses that rivals do not share. */
    public static function again(array $kinds, callable $work, int $attempts = 5): mixed {
        for ($attempt = 1; ; $attempt++) {
            try { return $work(); } catch (Throwable $error) {
                if ($attempt >= $attempts || !in_array(Errors::kind($error), $kinds, true)) throw $error;
            }
            usleep((int) (2 ** $attempt * 20_000 * (0.5 + lcg_value())));
        }
    }
    /** $ask($wait) in half of the workers at most, $ask(null) in the others: those that wait must not fill the pool. */
    public function capped(?string $wait, callable $ask): mixed {
        if ($wait !== null && !$this->locks) throw new LogicException('where requests wait, the client has to know "workers" and "locks"');
        for ($place = 1; $wait !== null && $place <= intdiv($this->workers, 2); $place++) {
            $file = fopen("$this->locks/waiter.$place", 'c'); // the lock ends with the process, however that ends
            if (flock($file, LOCK_EX | LOCK_NB)) try { return $ask($wait); } finally { fclose($file); }
        }
        return $ask(null);
    }
}
