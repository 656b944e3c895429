<?php declare(strict_types=1);
// What to do about an error, by its SQLSTATE, wherever Doctrine, Laravel or others have wrapped it.
namespace IdempotencyPg;
use Throwable;

final class Errors {
    // HY000 with libpq's 7 is an error without an SQLSTATE: the connection was lost. 54000 is permanent: never "try again".
    private const KINDS = ['stale_claim' => 'IK001', 'not_claimed' => 'IK002', 'other_completion' => 'IK003', 'left_open' => 'IK004',
        'held' => 'IK005', 'redacted' => 'IK006', 'retry' => '40001|40P01', 'wait_timeout' => '55P03', 'too_large' => '54000',
        'bad_request' => '22...', 'unavailable' => '08...|25006|53300|57P0[123]|HY0007'];
    // PDO has no access to the error's field for a constraint's name. The detail says the same, and is not translated.
    private const REASONS = '/(?<taken_over>Its lease was over)|(?<completed>The key is completed)|(?<forgotten>The key was forgotten)/';

    /** "other" is a fault of the program. */
    public static function kind(?Throwable $error): string {
        [$state, $code] = self::info($error) + ['', ''];
        $state .= $state === 'HY000' ? $code : '';
        foreach (self::KINDS as $kind => $states) if (preg_match("/^($states)$/", $state)) return $kind;
        return 'other';
    }
    public static function sqlstate(?Throwable $error): ?string { return self::info($error)[0] ?? null; }
    /** Of stale_claim: taken_over, completed or forgotten. */
    public static function reason(?Throwable $error): ?string {
        preg_match(self::REASONS, self::kind($error) === 'stale_claim' ? self::info($error)[2] : '', $match);
        return array_keys(array_filter($match))[1] ?? null;
    }
    private static function info(?Throwable $error): array { return $error ? $error->errorInfo ?? self::info($error->getPrevious()) : []; }
}
