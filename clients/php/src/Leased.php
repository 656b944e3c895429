<?php declare(strict_types=1);
// Work that leaves the database: the claim is committed first, with a lease, and what became of the work is recorded afterwards.
// $work(Attempt) says by its end what is known. An Answer is recorded in one transaction with what its book() writes; a refusal for good
// is such an answer. NothingHappened lets the next attempt do it. Anything else that is thrown means that nobody knows, and the key is
// held for a person.
namespace IdempotencyPg;
use Exception, Throwable;

final class NothingHappened extends Exception {}

/** What work gets. PHP has no thread that could renew the lease beside the work. So either the lease is longer than all time-outs of the
  * work together, or the work beats, between its steps and while it waits, and no stretch without a beat is longer than half of it. */
final class Attempt {
    public ?Throwable $lost = null;
    private float $due;

    public function __construct(private Client $client, private Id $id, public readonly Result $claim, public readonly string $effectKey) {
        $this->due = hrtime(true) + $claim->leaseMs * 1e6 / 3;
    }
    /** Renews the lease if a third of it is over, and costs nothing otherwise. False if the claim is somebody else's: work has to stop.
      * Throws nothing, as it is called where that is lost: CURLOPT_XFERINFOFUNCTION => fn () => $attempt->beat() ? 0 : 1. */
    public function beat(): bool {
        if ($this->lost || hrtime(true) < $this->due) return !$this->lost;
        $this->due = hrtime(true) + $this->claim->leaseMs * 1e6 / 3;
        try { $this->client->extend($this->id, token: $this->claim->token); } catch (Throwable $error) {
            // Who cannot reach the database goes on, and tries at the next beat.
            $this->lost = in_array(Errors::kind($error), ['unavailable', 'retry'], true) ? null : $error;
        }
        return !$this->lost;
    }
}

final class Leased {
    public function __construct(private Client $client) {}

    /** The outcome of claim(), with the answer where it was claimed; also Failed, after NothingHappened. */
    public function run(Id $id, callable $work, ?string $wait = null, ?string $step = null, mixed ...$options): Result {
        $options += ['claimId' => bin2hex(random_bytes(16))]; // if the answer to the claim is lost, the same id gets the same token
        $ask = fn (?string $wait) => self::despiteLoss(fn () => $this->client->claim($id, ...$options, wait: $wait));
        $claim = $this->client->capped($wait, $ask);
        return $claim->outcome === Outcome::Claimed ? $this->finish($id, $claim, $work, $step) : $claim;
    }
    /** Drives on, until $stop() says so, what others have left behind: one at a time. For a process of its own. */
    public function completer(string $operation, callable $work, ?string $step = null, ?string $lease = null, float $pause = 1,
        ?callable $onError = null, ?callable $stop = null): void {
        for (; !$stop || !$stop(); usleep((int) ($pause * 1e6))) {
            try {
                $claims = $this->client->claimAbandoned(operation: $operation, lease: $lease, maxRows: 1);
                foreach ($claims as $claim) $this->finish(new Id($claim->scope, $operation, $claim->key), $claim, $work, $step);
            } catch (Throwable $error) { $onError && $onError($error); } // such as a database that is down: later, then
        }
    }
    private function finish(Id $id, Result $claim, callable $work, ?string $step): Result {
        $effectKey = self::despiteLoss(fn () => $this->client->effectKey($id, $step));
        $attempt = new Attempt($this->client, $id, $claim, $effectKey);
        try { $answer = (fn (): Answer => $work($attempt))(); } catch (Throwable $error) {
            return $attempt->lost ? throw $attempt->lost : $this->settle($id, $claim, $error); // who is not the owner has nothing to record
        }
        try {
            $claim->expiresAt = self::despiteLoss(fn () => $this->client->transaction(function (object $db) use ($id, $claim, $answer) {
                // First, so that a repeat of what was committed learns that from it, and not from a unique key of book's.
                $expires = $this->client->complete($id, $answer, token: $claim->token, refuseRepeat: true);
                $answer->book && ($answer->book)($db);
                return $expires;
            }));
            $claim->answer = $answer;
            return $claim;
        } catch (Throwable $error) {
            // The answer to COMMIT was lost, or a person was faster: what is recorded is what counts.
            if (Errors::reason($error) === 'completed') return $this->client->replay($id);
            // Done, and not to be recorded: nobody may do it once more because the lease ends.
            if (!in_array(Errors::kind($error), ['unavailable', 'stale_claim'], true)) $this->settle($id, $claim, $error);
            throw $error;
        }
    }
    private function settle(Id $id, Result $claim, Throwable $error): Result {
        $failed = $error instanceof NothingHappened;
        $why = $failed ? $error->getMessage() : $error::class . ': ' . $error->getMessage();
        $why = preg_match('/^[^\0]{0,1000}/u', $why, $text) ? $text[0] : preg_replace('/[^ -~]/', '?', substr($why, 0, 1000));
        $settled = $failed ? fn () => $this->client->fail($id, error: $why, token: $claim->token)
            : fn () => $this->client->hold($id, reason: $why, token: $claim->token);
        try { self::despiteLoss($settled); } catch (Throwable $refused) { // a repeat finds settled what the call did whose answer was lost
            if (!in_array(Errors::kind($refused), ['stale_claim', 'not_claimed', 'held'], true)) throw $refused;
        }
        [$claim->outcome, $claim->lastError] = [$failed ? Outcome::Failed : Outcome::Held, $why];
        return $claim;
    }
    private static function despiteLoss(callable $work): mixed { return Client::again(['unavailable'], $work, 6); }
}
