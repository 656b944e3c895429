<?php declare(strict_types=1);
// What the tests share: connections to the database that PG* names, keys that no other test has, and a way to wait.

use Doctrine\DBAL\{Connection, DriverManager};
use Illuminate\Database\PostgresConnection;
use IdempotencyPg\{Client, Id};
use PHPUnit\Framework\TestCase;

error_reporting(E_ALL & ~E_DEPRECATED); // Debian's Laravel is older than its PHP
foreach (['GuzzleHttp/Psr7', 'Symfony/Component/HttpKernel', 'Doctrine/DBAL', 'Illuminate/Database', 'Illuminate/Events', 'Illuminate/Routing'] as $library) require_once "/usr/share/php/$library/autoload.php";
require_once __DIR__ . '/../service/psr15_interfaces.php';
foreach (glob(__DIR__ . '/../src/*.php') as $file) require_once $file;

abstract class DatabaseTest extends TestCase {
    protected Client $client;

    public static function setUpBeforeClass(): void {
        self::connect()->exec("SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS idempotency;
            DROP SCHEMA IF EXISTS test_php CASCADE; CREATE SCHEMA test_php; CREATE TABLE test_php.orders (item int);
            SELECT idempotency.forget_scope('test_php', force => true)");
    }

    protected function setUp(): void {
        self::connect()->exec('DELETE FROM test_php.orders');
        $this->client = new Client(fn () => self::connect());
    }

    protected static function connect(array $options = [], string $dsn = 'pgsql:'): PDO {
        return new PDO($dsn, null, null, $options);
    }

    protected static function doctrine(): Connection {
        [$user, $name] = self::connect()->query('SELECT current_user, current_database()')->fetch(PDO::FETCH_NUM);
        return DriverManager::getConnection(['driver' => 'pdo_pgsql', 'user' => $user, 'dbname' => $name]);
    }

    protected static function laravel(): PostgresConnection {
        $laravel = new PostgresConnection(fn () => self::connect());
        $laravel->setReconnector(fn () => $laravel->setPdo(self::connect()));
        return $laravel;
    }

    protected static function id(string $operation = 'POST /orders'): Id {
        return new Id('test_php', $operation, bin2hex(random_bytes(8)));
    }

    protected function insert(int $item): int|false {
        return $this->client->db()->exec("INSERT INTO test_php.orders VALUES ($item)");
    }

    protected static function orders(int $item): int {
        return self::connect()->query("SELECT count(*) FROM test_php.orders WHERE item = $item")->fetchColumn();
    }

    protected static function thrown(callable $work): Throwable {
        try {
            $work();
        } catch (Throwable $error) {
            return $error;
        }
        self::fail('nothing was thrown');
    }

    /** A statement that fails with this SQLSTATE. */
    protected static function raise(string $state): string {
        return "DO $$ BEGIN RAISE SQLSTATE '$state'; END $$";
    }

    /** Ends the connection that this client has, from another one. */
    protected static function sever(Client $client): void {
        $pid = $client->db()->query('SELECT pg_backend_pid()')->fetchColumn();
        $other = self::connect();
        $other->query("SELECT pg_terminate_backend($pid)");
        self::until(fn () => $other->query("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid")->fetchColumn());
    }

    protected static function until(callable $look): mixed {
        for ($i = 0; $i < 1200; $i++) {
            if ($seen = $look()) return $seen;
            usleep(50_000);
        }
        self::fail('waited in vain');
    }
}
