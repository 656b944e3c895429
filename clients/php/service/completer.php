<?php declare(strict_types=1);
// The completer of the conformance service, a process of its own beside php-fpm.

require __DIR__ . '/shop.php';

$shop = new Shop();
(new IdempotencyPg\Leased($shop->client))->completer('POST /charges', $shop->charge(...), step: 'charge', lease: getenv('LEASE'), pause: 0.5,
    onError: fn (Throwable $error) => fprintf(STDERR, "completer: %s\n", $error->getMessage()));
