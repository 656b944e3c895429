<?php declare(strict_types=1);
// What to do about an error, by its SQLSTATE, wherever Doctrine, Laravel or others have wrapped it.
namespace IdempotencyPg;
use Throwable;

final class Errors {
    // HY000 is PDO's where libpq has no SQLSTATE: the connection was lost. 54000 is permanent: never "try again".
    private const KINDS = [
        'IK001' => 'stale_claim', 'IK002' => 'not_claimed', 'IK003' => 'other_completion', 'IK004' => 'left_open', 'IK005' => 'held',
        'IK006' => 'redacted', '40001' => 'retry', '40P01' => 'retry', '55P03' => 'wait_timeout', '54000' => 'too_large',
        '25006' => 'unavailable', '53300' => 'unavailable', '57P01' => 'unavailable', '57P02' => 'unavailable', '57P03' => 'unavailable',
        '08' => 'unavailable', 'HY000' => 'unavailable', '22' => 'bad_request'];
    // PDO has no access to the error's field for a constraint's name. The detail says the same, and is not translated.
    private const REASONS = '/(?<taken_over>Its lease was over)|(?<completed>The key is completed)|(?<forgotten>The key was forgotten)/';

    /** "other" is a fault of the program. */
    public static function kind(?Throwable $error): string {
        $state = self::sqlstate($error) ?? '';
        return self::KINDS[$state] ?? self::KINDS[substr($state, 0, 2)] ?? 'other';
    }
    public static function sqlstate(?Throwable $error): ?string { return self::info($error)[0] ?? null; }
    /** Of stale_claim: taken_over, completed or forgotten. */
    public static function reason(?Throwable $error): ?string {
        preg_match(self::REASONS, self::kind($error) === 'stale_claim' ? self::info($error)[2] : '', $match);
        return array_keys(array_filter($match))[1] ?? null;
    }
    private static function info(?Throwable $error): array { return $error ? $error->errorInfo ?? self::info($error->getPrevious()) : []; }
}
