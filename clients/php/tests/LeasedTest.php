<?php declare(strict_types=1);
// Work that leaves the database: what is recorded of it, the beat, a claim whose answer is lost, and an owner that dies.

use IdempotencyPg\{Answer, Attempt, Client, Errors, Leased, NothingHappened, Outcome};

final class LeasedTest extends DatabaseTest {
    private const ASKED = ['request' => ['item' => 1], 'lease' => '1 min'];
    private Leased $leased;

    protected function setUp(): void {
        parent::setUp();
        $this->leased = new Leased($this->client);
    }

    public function testAnAnswerIsRecordedWithWhatItBooksOnce(): void {
        [$id, $keys] = [self::id(), []];
        $work = function (Attempt $attempt) use (&$keys) {
            $keys[] = $attempt->effectKey;
            return new Answer(201, ['charged' => $attempt->claim->state['amount']], book: fn () => $this->insert(80));
        };
        $first = $this->leased->run($id, $work, ...self::ASKED, step: 'charge', state: ['amount' => 5]);
        $this->assertSame([Outcome::Claimed, 201, '{"charged":5}'], [$first->outcome, $first->answer->status, $first->answer->body]);
        $this->assertGreaterThan(new DateTimeImmutable(), $first->expiresAt);
        $second = $this->leased->run($id, $work, ...self::ASKED, step: 'charge', state: ['amount' => 5]);
        $this->assertSame([Outcome::Replay, null, '{"charged":5}'], [$second->outcome, $second->answer, $second->responseBody]);
        $this->assertSame([1, [$this->client->effectKey($id, 'charge')]], [self::orders(80), $keys]);
    }

    public function testWhatWorkThrowsDecides(): void {
        $id = self::id();
        $failed = $this->leased->run($id, fn () => throw new NothingHappened('connection refused'), ...self::ASKED);
        $this->assertSame([Outcome::Failed, 'connection refused'], [$failed->outcome, $failed->lastError]);
        $again = $this->leased->run($id, fn (Attempt $attempt) => new Answer(200, [$attempt->claim->attempt, $attempt->claim->lastError]), ...self::ASKED);
        $this->assertSame('[2,"connection refused"]', $again->answer->body);
        foreach ([fn () => throw new Exception('no answer'), fn () => throw new Exception("caf\xe9 \0" . str_repeat('x', 1 << 20)), fn () => 1 % 0, fn () => null] as $work) {
            $id = self::id();
            $this->assertSame(Outcome::Held, $this->leased->run($id, $work, ...self::ASKED)->outcome);
            $this->assertSame(Outcome::Held, $this->leased->run($id, fn () => self::fail('it is held'), ...self::ASKED)->outcome);
            $this->assertMatchesRegularExpression('/no answer|caf\?|modulo|must be of type/i', $this->client->lookup($id)->lastError);
        }
    }

    public function testDoneAndNotToBeRecordedIsHeldAndNothingIsBooked(): void {
        foreach ([new Answer(200, str_repeat('x', 5 << 20), book: fn () => $this->insert(81)),
            new Answer(200, 'booked', book: fn ($db) => [$this->insert(81), $db->exec('SELECT 1/0')])] as $answer) {
            $id = self::id();
            $this->assertContains(Errors::sqlstate(self::thrown(fn () => $this->leased->run($id, fn () => $answer, ...self::ASKED))), ['54000', '22012']);
            $this->assertSame(['held', 0], [$this->client->lookup($id)->status, self::orders(81)]);
        }
    }

    public function testABeatKeepsTheLeaseAndStopsAnOutsideCallWhoseClaimIsLost(): void {
        $silent = stream_socket_server('tcp://127.0.0.1:0'); // takes connections and never answers
        [$id, $curl, $watch] = [self::id(), curl_init('http://' . stream_socket_get_name($silent, false)), new Client(fn () => self::connect())];
        $error = self::thrown(fn () => $this->leased->run($id, function (Attempt $attempt) use ($id, $curl, $watch) {
            curl_setopt_array($curl, [CURLOPT_NOPROGRESS => false, CURLOPT_XFERINFOFUNCTION => function () use ($attempt, $id, $watch) {
                if ($watch->lookup($id)?->lockedUntil > $attempt->claim->lockedUntil) { // it was renewed: now somebody takes the key away
                    $watch->db()->exec("SELECT idempotency.forget('test_php', 'POST /orders', '$id->key', force => true)");
                }
                return $attempt->beat() ? 0 : 1;
            }]);
            return curl_exec($curl) ? new Answer(201) : throw new Exception(curl_error($curl));
        }, ...['lease' => '3 s'] + self::ASKED));
        $this->assertSame(CURLE_ABORTED_BY_CALLBACK, curl_errno($curl));
        $this->assertSame(['stale_claim', 'forgotten', null], [Errors::kind($error), Errors::reason($error), $watch->lookup($id)]);
    }

    public function testABeatGoesOnWithoutADatabase(): void {
        $down = false;
        $client = new Client(function () use (&$down) { return self::connect([], $down ? 'pgsql:host=127.0.0.1;port=1' : 'pgsql:'); });
        $result = (new Leased($client))->run(self::id(), function (Attempt $attempt) use ($client, &$down) {
            $down = true;
            self::sever($client);
            usleep(200_000);
            $this->assertTrue($attempt->beat());
            $down = false;
            return new Answer(201);
        }, ...['lease' => '300 ms'] + self::ASKED);
        $this->assertSame(201, $result->answer->status);
    }

    public function testAnAnswerThatAPersonHasRecordedMeanwhileIsTheOneThatCounts(): void {
        $id = self::id();
        $result = $this->leased->run($id, function (Attempt $attempt) use ($id) {
            (new Client(fn () => self::connect()))->complete($id, new Answer(201, 'by hand'), token: $attempt->claim->token);
            return new Answer(201, 'by the machine', book: fn () => $this->insert(83));
        }, ...self::ASKED);
        $this->assertSame([Outcome::Replay, 'by hand', 0], [$result->outcome, $result->responseBody, self::orders(83)]);
    }

    public function testAClaimWhoseAnswerIsLostIsRepeatedWithItsId(): void {
        $proxy = proc_open([PHP_BINARY, __DIR__ . '/lossy_proxy.php'], [1 => ['pipe', 'w']], $pipes);
        try {
            $port = (int) fgets($pipes[1]);
            $client = new Client(fn () => self::connect([], "pgsql:host=127.0.0.1;port=$port;sslmode=disable;gssencmode=disable"));
            $runs = 0;
            $result = (new Leased($client))->run(self::id(), function (Attempt $attempt) use (&$runs) { return new Answer(201, [++$runs, $attempt->claim->attempt]); },
                ...self::ASKED);
            $this->assertSame("lost\n", fgets($pipes[1]));
            $this->assertSame([Outcome::Claimed, '[1,1]'], [$result->outcome, $result->answer->body]);
        } finally {
            proc_terminate($proxy, SIGKILL);
            proc_close($proxy);
        }
    }

    public function testTheCompleterDrivesOnWhatOthersLeftThoughItsDatabaseWasGone(): void {
        $ids = [self::id('POST /abandoned'), self::id('POST /abandoned')];
        foreach ($ids as $i => $id) $this->client->claim($id, request: $i, lease: '1 ms', state: ['item' => 84 + $i]);
        [$kinds, $begun] = [[], 0];
        $client = new Client(function () use (&$begun) { return self::connect([], $begun++ < 2 ? 'pgsql:host=127.0.0.1;port=1' : 'pgsql:'); });
        $completed = fn () => array_filter($ids, fn ($id) => $this->client->lookup($id)->status === 'completed') === $ids;
        $deadline = hrtime(true) + 60e9;
        (new Leased($client))->completer('POST /abandoned', function (Attempt $attempt) use ($client) {
            $item = $attempt->claim->state['item'];
            return new Answer(201, ['item' => $item], book: fn () => $client->db()->exec("INSERT INTO test_php.orders VALUES ($item)"));
        }, lease: '1 min', pause: 0.02, onError: function (Throwable $error) use (&$kinds) { $kinds[] = Errors::kind($error); },
            stop: fn () => $completed() || hrtime(true) > $deadline);
        $this->assertSame([1, 1], [self::orders(84), self::orders(85)]);
        $this->assertSame(['unavailable', 'unavailable'], $kinds);
    }
}
