<?php declare(strict_types=1);
// The thin client: what is compared, what an outcome and an error are, whatever PDO is set to.

use IdempotencyPg\{Answer, Client, Errors, Id, Outcome};

final class ClientTest extends DatabaseTest {
    public function settings(): array {
        return [
            'named statements' => [[]], 'no prepares' => [[PDO::PGSQL_ATTR_DISABLE_PREPARES => true]], 'emulated' => [[PDO::ATTR_EMULATE_PREPARES => true]],
            'odd' => [[PDO::ATTR_STRINGIFY_FETCHES => true, PDO::ATTR_ORACLE_NULLS => PDO::NULL_TO_STRING, PDO::ATTR_CASE => PDO::CASE_UPPER,
                PDO::ATTR_ERRMODE => PDO::ERRMODE_SILENT, PDO::ATTR_DEFAULT_FETCH_MODE => PDO::FETCH_LAZY]],
        ];
    }

    /** @dataProvider settings */
    public function testEverySettingGivesTheSame(array $options): void {
        foreach (['hex, ISO', 'escape, German'] as $ways) {
            [$output, $dates] = explode(', ', $ways);
            $client = new Client(fn () => self::connect($options));
            $client->db()->exec("SET bytea_output = $output; SET datestyle = $dates");
            $id = self::id();
            $answer = new Answer(201, "ax\0\xff\\", ['Link' => ['</a>', '</b>'], 'Set-Cookie' => 'x=1', 'Location' => '/1']);
            $client->transaction(function () use ($client, $id, $answer) {
                $this->assertSame(Outcome::Claimed, $client->claim($id, request: ['a' => 1])->outcome);
                $this->assertGreaterThan(new DateTimeImmutable('1 hour'), $client->complete($id, $answer));
            });
            $again = $client->claim($id, body: '{ "a": 1.0 }');
            $headers = [['Link', '</a>'], ['Link', '</b>'], ['Location', '/1']];
            $this->assertSame([Outcome::Replay, 201, $headers, "ax\0\xff\\", null, true, $id->key],
                [$again->outcome, $again->responseStatus, $again->responseHeaders, $again->responseBytes, $again->responseBody, $again->fingerprintChecked, $again->key]);
            $this->assertSame(Outcome::Mismatch, $client->claim($id, body: '{"a": 2}')->outcome);
            $this->assertSame([Outcome::Replay, "ax\0\xff\\"], [$client->replay($id)->outcome, $client->replay($id)->responseBytes]);
            $this->assertSame(['completed', 32], [$client->lookup($id)->status, strlen($client->lookup($id)->fingerprint)]);
            $this->assertNull($client->lookup(self::id()));
            $this->assertSame('not_claimed', Errors::kind(self::thrown(fn () => $client->complete(self::id()))));
            // Behind pgbouncer in transaction mode the next transaction is on another connection, where no such name is known.
            $this->assertSame('0', $client->run(self::id(), 'SELECT count(*) FROM pg_prepared_statements', request: 1)->responseBody);
        }
    }

    public function testAllCallsAndTokensBeyondTwoToThe53(): void {
        [$client, $id] = [$this->client, self::id()];
        $claim = $client->claim($id, request: 1, lease: '1 min', state: ['n' => 1.5], holdIfAbandoned: false, note: 'a "note"');
        $this->assertIsInt($claim->token);
        $client->db()->exec("UPDATE idempotency.idempotency_keys SET token = 9007199254740993 WHERE key = '$id->key'"); // in 300 years
        $claim->token = $client->lookup($id)->token;
        $this->assertSame(9007199254740993, $claim->token);
        $this->assertEqualsWithDelta(60000, $claim->leaseMs, 30000);
        $this->assertGreaterThan($claim->lockedUntil, $client->extend($id, token: $claim->token, lease: '10 min'));
        $this->assertGreaterThan($claim->createdAt, $client->checkpoint($id, 'charged', token: $claim->token, state: ['ok' => true]));
        $found = $client->lookup($id);
        $this->assertSame([$claim->token, 'charged', ['ok' => true], false, 'a "note"'],
            [$found->token, $found->recoveryPoint, $found->state, $found->holdIfAbandoned, $found->note]);
        $this->assertSame($claim->token, $client->hold($id, token: $claim->token, reason: 'no answer'));
        $this->assertSame([Outcome::Held, null], [$client->claim($id, request: 1)->outcome, $client->lookup($id)->expiresAt]);
        $other = self::id();
        $token = $client->claim($other, request: 1, lease: '1 min')->token;
        $this->assertTrue($client->fail($other, token: $token, error: 'full', retryIn: '1 h'));
        $this->assertSame('retry', $client->claim($other, request: 1)->rival);
        $third = self::id();
        $this->assertTrue($client->release($third, token: $client->claim($third, request: 1, lease: '1 min')->token));
        $this->assertTrue($client->recordFailure($third, error: 'full'));
        $this->assertSame([true, false], [$client->once($id = self::id()), $client->once($id)]);
        $this->assertSame($client->effectKey($id, 'a'), $client->effectKey($id, 'a'));
        $run = $client->run(self::id(), "SELECT (\$1->>'n')::int", request: 1, args: ['n' => 7]);
        $this->assertSame([Outcome::Claimed, '7'], [$run->outcome, $run->responseBody]);
    }

    public function testARequestThatIsMissingIsAnError(): void {
        $payload = [];
        foreach ([[], ['request' => null], ['request' => @$payload['item']], ['request' => '{"json": "text"}'], ['request' => 1, 'laese' => '1 min']] as $options) {
            $this->assertInstanceOf(LogicException::class, self::thrown(fn () => $this->client->claim(self::id(), ...$options, lease: '1 min')));
            $this->assertInstanceOf(LogicException::class, self::thrown(fn () => $this->client->run(self::id(), 'SELECT 1', ...$options)));
        }
        $this->assertSame(Outcome::Claimed, $this->client->claim(self::id(), compare: false, lease: '1 min')->outcome);
    }

    public function testWhatJsonbRefusesIsComparedAsBytesAndPathParametersToo(): void {
        foreach (['{"a": "\u0000"}', '{"a": "\ud800"}', '{"a": 1e200000}', "\0\xff", ''] as $body) {
            $id = self::id();
            $ask = fn (string $body, string $param) => $this->client->claim($id, body: $body, params: ['id' => $param], lease: '1 min')->outcome;
            $this->assertSame([Outcome::Claimed, Outcome::InProgress, Outcome::Mismatch, Outcome::Mismatch],
                [$ask($body, '7'), $ask($body, '7'), $ask($body . 'x', '7'), $ask($body, '8')]);
        }
    }

    public function testAnOutcomeThatIsNotKnownIsNeverGoneOnWith(): void {
        $name = 'newer_' . bin2hex(random_bytes(8));
        self::connect()->exec("CREATE DATABASE $name");
        try {
            $newer = self::connect([], "pgsql:dbname=$name");
            $newer->exec("CREATE SCHEMA idempotency; CREATE TYPE idempotency.answer AS (outcome text, locked_until timestamptz);
                CREATE FUNCTION idempotency.claim(scope text, operation text, key text) RETURNS idempotency.answer LANGUAGE sql AS
                $$ SELECT 'postponed', now() $$");
            $this->assertInstanceOf(ValueError::class, self::thrown(fn () => (new Client(fn () => $newer))->claim(self::id(), compare: false)));
        } finally {
            unset($newer);
            self::connect()->exec("DROP DATABASE $name WITH (FORCE)");
        }
    }

    public function testKinds(): void {
        [$dbal, $laravel, $mysql] = [self::doctrine(), self::laravel(), new PDOException()];
        foreach (['IK003' => 'other_completion', 'IK006' => 'redacted', '40001' => 'retry', '40P01' => 'retry', '55P03' => 'wait_timeout', '22P02' => 'bad_request',
            '54000' => 'too_large', '25006' => 'unavailable', '53300' => 'unavailable', '08006' => 'unavailable', '57P01' => 'unavailable', '57014' => 'other',
            '23505' => 'other', 'P0001' => 'other'] as $state => $kind) {
            $sql = self::raise((string) $state);
            foreach ([fn () => self::connect()->exec($sql), fn () => $dbal->executeStatement($sql), fn () => $laravel->statement($sql)] as $way) {
                $this->assertSame([(string) $state, $kind], [Errors::sqlstate($error = self::thrown($way)), Errors::kind($error)]);
            }
        }
        $this->assertSame('unavailable', Errors::kind(self::thrown(fn () => self::connect([], 'pgsql:host=127.0.0.1;port=1'))));
        $lost = $this->client->db();
        self::sever($this->client);
        $this->assertSame(['unavailable', 'unavailable'], [Errors::kind(self::thrown(fn () => $lost->exec('SELECT 1'))), Errors::kind(self::thrown(fn () => $lost->exec('SELECT 1')))]);
        $mysql->errorInfo = ['HY000', 1364, 'a general error of another database'];
        foreach ([new TypeError('a fault of the program'), null, $mysql] as $error) $this->assertSame('other', Errors::kind($error));
        $this->assertSame('left_open', Errors::kind(self::thrown(fn () => $this->client->claim(self::id(), request: 1))));
    }

    public function testAStaleOwnerIsToldWhy(): void {
        $claim = fn (Id $id, string $lease) => $this->client->claim($id, request: 1, lease: $lease)->token;
        $complete = fn (Id $id, int $token) => self::thrown(fn () => $this->client->complete($id, token: $token, refuseRepeat: true));
        [$taken, $completed, $forgotten] = [self::id(), self::id(), self::id()];
        $token = $claim($taken, '1 ms');
        self::until(fn () => $this->client->claim($taken, request: 1, lease: '1 min')->outcome === Outcome::Claimed);
        $this->assertSame('taken_over', Errors::reason($error = $complete($taken, $token)));
        $this->assertSame('stale_claim', Errors::kind($error));
        $this->client->complete($completed, token: $token = $claim($completed, '1 min'));
        $this->assertSame('completed', Errors::reason($complete($completed, $token)));
        $token = $claim($forgotten, '1 min');
        $this->client->db()->exec("SELECT idempotency.forget('test_php', 'POST /orders', '$forgotten->key', force => true)");
        $this->assertSame('forgotten', Errors::reason($complete($forgotten, $token)));
        $this->assertNull(Errors::reason(new Exception('The key is completed.')));
    }

    public function testATransactionIsRunAgainWhereTheServerAsksForIt(): void {
        $runs = 0;
        foreach (['40001', '40P01'] as $state) {
            $runs = 0;
            $this->assertSame(5, $this->client->transaction(function ($db) use ($state, &$runs) {
                $this->insert(70);
                return ++$runs < 5 ? $db->exec(self::raise($state)) : $runs;
            }));
        }
        $this->assertSame(2, self::orders(70));
        foreach (['40001' => 5, '54000' => 1, '08006' => 1] as $state => $attempts) {
            $runs = 0;
            $work = function ($db) use ($state, &$runs) { $runs++; $db->exec(self::raise((string) $state)); };
            $error = self::thrown(fn () => $this->client->transaction($work));
            $this->assertSame([(string) $state, $attempts], [Errors::sqlstate($error), $runs]);
        }
    }

    public function testAnAnswerThatIsTooLargeIsRolledBack(): void {
        $id = self::id();
        $error = self::thrown(fn () => $this->client->transaction(function () use ($id) {
            $this->client->claim($id, request: 1);
            $this->insert(71);
            $this->client->complete($id, new Answer(200, str_repeat('x', 5 << 20)));
        }));
        $this->assertSame(['too_large', 0, null], [Errors::kind($error), self::orders(71), $this->client->lookup($id)]);
    }

    public function testACommitThatWouldRollBackIsAnError(): void {
        $error = self::thrown(fn () => $this->client->transaction(function ($db) {
            $this->insert(72);
            self::thrown(fn () => $db->exec('SELECT 1/0')); // swallowed
        }));
        $this->assertSame(['25P02', 0], [Errors::sqlstate($error), self::orders(72)]);
    }

    public function testAnOutcomeThatIsIgnoredDoesNotDoTheWorkTwice(): void {
        $id = self::id();
        $work = function () use ($id) {
            $this->client->claim($id, request: 1);
            $this->insert(73);
            $this->client->complete($id);
        };
        $this->client->transaction($work);
        $this->assertSame(['not_claimed', 1], [Errors::kind(self::thrown(fn () => $this->client->transaction($work))), self::orders(73)]);
    }

    public function testALostConnectionIsReplacedButNotWithinATransaction(): void {
        foreach ([[], [PDO::ATTR_PERSISTENT => true]] as $options) {
            $client = new Client(fn () => self::connect($options));
            self::sever($client);
            $this->assertSame(1, $client->transaction(fn ($db) => $db->query('SELECT 1')->fetchColumn())); // lost while it was idle
            $error = self::thrown(fn () => $client->transaction(function ($db) use ($client) {
                self::sever($client);
                self::thrown(fn () => $db->exec('SELECT 1')); // swallowed
                $this->assertSame($db, $client->db());
                $client->db()->exec('INSERT INTO test_php.orders VALUES (74)'); // must not be done by itself
            }));
            $this->assertSame(['unavailable', 0], [Errors::kind($error), self::orders(74)]);
            $this->assertSame(1, $client->db()->query('SELECT 1')->fetchColumn());
        }
    }

    /** What each calls: to give up the connection, a transaction of one's own, a statement, how many transactions are open. */
    public function libraries(): array {
        return [['doctrine', 'close', 'transactional', 'executeStatement', 'getTransactionNestingLevel'],
            ['laravel', 'reconnect', 'transaction', 'statement', 'transactionLevel']];
    }

    /** @dataProvider libraries */
    public function testTheTransactionsOfDoctrineAndLaravelAreWithinTheClaims(string $library, string $close, string $nest, string $do, string $level): void {
        $library = self::$library();
        $client = new Client(function () use ($library, $close) { $library->$close(); return $library; });
        $work = fn (Id $id, bool $fails = false) => fn () => $client->transaction(function ($db) use ($client, $id, $library, $fails, $nest, $do) {
            $this->assertSame($library, $db);
            if ($client->claim($id, request: 1)->outcome === Outcome::Replay) return;
            $db->$nest(fn () => $db->$do('INSERT INTO test_php.orders VALUES (75)'));
            $client->complete($id);
            if ($fails) throw new Exception('after all');
        });
        $id = self::id();
        $this->assertSame(['after all', 0], [self::thrown($work($id, true))->getMessage(), self::orders(75)]);
        $work($id)();
        $work($id)();
        $this->assertSame(1, self::orders(75));
        self::sever(new Client(fn () => method_exists($library, 'getPdo') ? $library->getPdo() : $library->getNativeConnection()));
        $work(self::id())();
        $this->assertSame([2, 0], [self::orders(75), $library->$level()]);
        $runs = 0;
        $client->transaction(function ($db) use (&$runs, $do) { if (++$runs < 3) $db->$do(self::raise('40001')); });
        $this->assertSame([3, 0], [$runs, $library->$level()]);
    }

    public function testHalfOfTheWorkersWaitAndADeadOneDoesNotCount(): void {
        $locks = sys_get_temp_dir() . '/' . bin2hex(random_bytes(8));
        mkdir($locks);
        try {
            $client = new Client(fn () => self::connect(), 5, $locks);
            $three = fn () => $client->capped('1 s', fn ($a) => $client->capped('1 s', fn ($b) => $client->capped('1 s', fn ($c) => [$a, $b, $c])));
            $this->assertSame(['1 s', '1 s', null], $three());
            $this->assertSame(['1 s', '1 s', null], $three()); // the places are free again
            $this->assertNull($client->capped(null, fn ($wait) => $wait));
            [$waits, $told] = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);
            $pid = pcntl_fork();
            if ($pid === 0) {
                $client->capped('1 s', fn () => [fwrite($told, "waiting\n"), sleep(600)]);
                exit;
            }
            $this->assertSame("waiting\n", fgets($waits));
            $this->assertSame(['1 s', null, null], $three());
            posix_kill($pid, SIGKILL);
            pcntl_waitpid($pid, $status);
            $this->assertSame(['1 s', '1 s', null], $three());
            $this->assertInstanceOf(LogicException::class, self::thrown(fn () => $this->client->capped('1 s', fn () => null)));
        } finally {
            array_map(unlink(...), glob("$locks/*"));
            rmdir($locks);
        }
    }
}
