<?php declare(strict_types=1);
// PSR-15, for Slim, Mezzio and others: a middleware, after authentication.
namespace IdempotencyPg;
use Psr\Http\Message\{ResponseFactoryInterface, ResponseInterface, ServerRequestInterface, StreamFactoryInterface};
use Psr\Http\Server\{MiddlewareInterface, RequestHandlerInterface};

final class Psr15 implements MiddlewareInterface {
    public function __construct(private Http $http, private ResponseFactoryInterface&StreamFactoryInterface $psr17) {}

    public function process(ServerRequestInterface $request, RequestHandlerInterface $handler): ResponseInterface {
        if (!$found = $this->http->find($request->getMethod(), $request->getUri()->getPath())) return $handler->handle($request);
        $body = (string) $request->getBody();
        $run = fn () => $handler->handle($request->withBody($this->psr17->createStream($body))); // which is read anew by each run
        [$lines, $length] = [$request->getHeader('Idempotency-Key'), (int) $request->getHeaderLine('Content-Length')];
        $answer = $this->http->answer($found, $request, $lines, $body, $length, function () use ($run) {
            $response = $run();
            return new Answer($response->getStatusCode(), (string) $response->getBody(), $response->getHeaders());
        });
        if (!$answer) return $run();
        $response = $this->psr17->createResponse($answer->status)->withBody($this->psr17->createStream($answer->body));
        foreach ($answer->headers as [$name, $value]) $response = $response->withAddedHeader($name, $value);
        return $response;
    }
}
