<?php // No tool is needed to find the classes, some of which share a file. Composer uses this, too.
spl_autoload_register(static function (string $class): void {
    $with = ['Id' => 'Result', 'Outcome' => 'Result', 'Attempt' => 'Leased', 'NothingHappened' => 'Leased', 'Route' => 'Http'];
    [$namespace, $name] = explode('\\', $class, 2) + [1 => ''];
    if ($namespace === 'IdempotencyPg' && is_file($file = __DIR__ . '/' . ($with[$name] ?? $name) . '.php')) require $file;
});
