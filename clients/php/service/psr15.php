<?php declare(strict_types=1);
// The conformance service as PSR-15: the middleware before a handler, with Guzzle's messages.

use GuzzleHttp\Psr7\{HttpFactory, ServerRequest};
use IdempotencyPg\{Answer, Psr15};
use Psr\Http\Message\{ResponseInterface, ServerRequestInterface};
use Psr\Http\Server\RequestHandlerInterface;

require '/usr/share/php/GuzzleHttp/Psr7/autoload.php';
require __DIR__ . '/psr15_interfaces.php';
require __DIR__ . '/shop.php';
require __DIR__ . '/../src/Psr15.php';

final class Handler implements RequestHandlerInterface {
    public function __construct(private Shop $shop, private HttpFactory $psr17) {}

    public function handle(ServerRequestInterface $request): ResponseInterface {
        return $this->respond($this->shop->answer($request->getMethod(), $request->getUri()->getPath(), $request->getAttribute('user'),
            (string) $request->getBody(), $request->getHeaderLine(...)));
    }

    public function respond(Answer $answer): ResponseInterface {
        $response = $this->psr17->createResponse($answer->status)->withBody($this->psr17->createStream($answer->body));
        foreach ($answer->headers as [$name, $value]) $response = $response->withAddedHeader($name, $value);
        return $response;
    }
}

$shop = new Shop();
$psr17 = new HttpFactory();
$handler = new Handler($shop, $psr17);
$once = new Psr15($shop->http(fn ($request) => $request->getAttribute('user'), fn ($request) => (string) $request->getBody()), $psr17);

$request = ServerRequest::fromGlobals();
$user = Shop::user($request->getHeaderLine('Authorization'));
try {
    $response = $user === null ? $handler->handle($request) : $once->process($request->withAttribute('user', $user), $handler);
} catch (Throwable $error) {
    $answer = new Answer($error instanceof BadRequest ? 400 : 500, ['title' => $error->getMessage()], ['Content-Type' => 'application/problem+json']);
    $response = $handler->respond($answer);
}

http_response_code($response->getStatusCode());
foreach ($response->getHeaders() as $name => $values) foreach ($values as $value) header("$name: $value", false);
echo $response->getBody();
