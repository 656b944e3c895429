<?php declare(strict_types=1);
// What is asked for, and what the calls give.
namespace IdempotencyPg;
use DateTimeImmutable;

final class Id {
    public function __construct(public readonly string $scope, public readonly string $operation, public readonly string $key) {}
}

enum Outcome: string {
    case Claimed = 'claimed'; case Replay = 'replay'; case InProgress = 'in_progress'; case Mismatch = 'mismatch'; case Held = 'held';
    case Failed = 'failed'; // of Leased::run(): nothing happened
}

/** A row of claim, run, claim_abandoned, lookup or replay; what the call does not have is null. A token is an int, of 64 bits. */
final class Result {
    public ?Outcome $outcome = null;
    public ?Answer $answer = null; // of Leased::run(), where it was claimed
    public ?string $scope = null, $operation = null, $key = null, $status = null, $recoveryPoint = null, $lastError = null, $note = null,
        $rival = null, $claimId = null, $responseBody = null, $responseBytes = null, $fingerprint = null;
    public ?int $token = null, $attempt = null, $retryAfterMs = null, $responseStatus = null;
    public ?bool $takenOver = null, $fingerprintChecked = null, $abandoned = null, $holdIfAbandoned = null;
    public ?DateTimeImmutable $createdAt = null, $claimedAt = null, $checkpointedAt = null, $lockedUntil = null, $completedAt = null,
        $expiresAt = null, $responseExpiresAt = null, $redactedAt = null;
    public mixed $state = null, $responseHeaders = null, $leaseMs = null; // what is left of the lease

    public static function of(array $row): self {
        $result = new self();
        foreach ($row as $column => $value) {
            $name = lcfirst(str_replace('_', '', ucwords($column, '_')));
            if ($value === null || !property_exists($result, $name)) continue; // a later version of the extension has more columns
            if ($name === 'outcome') $value = Outcome::from($value); // one that is not known is an error: never go on with it
            if (preg_match('/At$|Until$/', $name)) $value = self::time($value);
            if (preg_match('/Bytes$|print$/', $name)) { // by bytea_output
                $value = str_starts_with($value, '\x') ? hex2bin(substr($value, 2)) : stripcslashes($value);
            }
            $result->$name = $value;
        }
        return $result;
    }
    public static function all(array $rows): array { return array_map(self::of(...), $rows); }
    public static function time(?string $value): ?DateTimeImmutable { // a held key never expires
        return $value === null || $value === 'infinity' ? null : new DateTimeImmutable($value);
    }
}
