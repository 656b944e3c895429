<?php declare(strict_types=1);
// An answer: status, body and headers; what of it is recorded, and how it comes back byte for byte.
namespace IdempotencyPg;
use Closure;

final class Answer {
    // About the connection, the moment or the session: never replayed.
    private const PASSING = '/^(set-cookie|date|content-length|connection|transfer-encoding|keep-alive|server|idempotent-replayed)$/i';
    public readonly array $headers; // pairs of name and value
    public readonly string $body;

    /** @param mixed $body text and bytes are taken as they are, every other value is made JSON
      * @param array $headers ['Location' => '/orders/1', 'Link' => ['</a>', '</b>']], or pairs of name and value
      * @param ?Closure $book of leased work: (db) writes in the transaction in which the answer is recorded */
    public function __construct(public readonly int $status = 200, mixed $body = '', array $headers = [],
        public readonly ?Closure $book = null) {
        $list = [];
        foreach ($headers as $name => $value) {
            [$name, $value] = is_int($name) ? $value : [$name, $value];
            foreach ((array) $value as $one) $list[] = [$name, (string) $one];
        }
        $this->headers = is_string($body) || self::find($list, 'content-type') ? $list : [...$list, ['Content-Type', 'application/json']];
        $this->body = is_string($body) ? $body : Client::json($body);
    }
    public function with(array $header): self { return new self($this->status, $this->body, [...$this->headers, $header]); }

    /** As options of complete(): text where it is text, so that a person can read the row; bytes otherwise. */
    public function recorded(): array {
        $kept = array_values(array_filter($this->headers, fn (array $header) => !preg_match(self::PASSING, $header[0])));
        $text = preg_match('~^$|^text/|[/+](json|xml)\b~i', self::find($this->headers, 'content-type'))
            && !self::find($this->headers, 'content-encoding') && preg_match('/^[^\0]*$/Du', $this->body);
        $body = $this->body === '' ? [] : [$text ? 'responseBody' : 'responseBytes' => $this->body];
        return ['responseStatus' => $this->status, 'responseHeaders' => $kept] + $body;
    }
    private static function find(array $headers, string $wanted): string {
        foreach ($headers as [$name, $value]) if (strtolower($name) === $wanted) return $value;
        return '';
    }
}
