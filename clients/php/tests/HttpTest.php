<?php declare(strict_types=1);
// The header, problems, what is recorded and when, by both adapters. What needs processes and faults is in ../conformance.

use GuzzleHttp\Psr7\{HttpFactory, Response as PsrResponse, ServerRequest};
use IdempotencyPg\{Answer, Http, Psr15, Route, Symfony};
use Illuminate\Container\Container;
use Illuminate\Contracts\Debug\ExceptionHandler;
use Illuminate\Events\Dispatcher;
use Illuminate\Routing\Router;
use Psr\Http\Message\{ResponseInterface, ServerRequestInterface};
use Psr\Http\Server\RequestHandlerInterface;
use Symfony\Component\EventDispatcher\EventDispatcher;
use Symfony\Component\HttpFoundation\{Request, RequestStack, Response, StreamedResponse};
use Symfony\Component\HttpKernel\Controller\{ArgumentResolver, ControllerResolver};
use Symfony\Component\HttpKernel\Event\{ExceptionEvent, ResponseEvent};
use Symfony\Component\HttpKernel\{HttpKernel, HttpKernelInterface, KernelEvents};

final class HttpTest extends DatabaseTest {
    public function testTheHeader(): void {
        foreach (['k' => 'k', '"k"' => 'k', ' "k" ' => 'k', '"k";p=1' => 'k', '"k"; a; b="x\"y;z,"; c=?1' => 'k', 'k;p' => 'k', '"a\"b"' => 'a"b', '"a\\\\b"' => 'a\b',
            '"a,b c"' => 'a,b c', '"0"' => '0', '"' . str_repeat('x', 255) . '"' => str_repeat('x', 255), 'YWJj+/=' => 'YWJj+/=', 'a:~b' => 'a:~b'] as $line => $key) {
            $this->assertSame($key, Http::parseKey([(string) $line]), (string) $line);
        }
        foreach (['', ' ', '""', '"', '"k', 'k"', '"a\nb"', "\"k\"\n", '"k" x', 'a, b', '"a", "b"', 'a b', 'ä', '"ä"', "\"a\tb\"", str_repeat('x', 256), '"k";P=1', '"k"p'] as $line) {
            $this->assertNull(Http::parseKey([$line]), $line);
        }
        $this->assertSame([null, null], [Http::parseKey([]), Http::parseKey(['k', 'k'])]);
    }

    /** Names of functions: (routes, handler) gives (method, path, key, body, more headers) => [status, headers, body]. */
    public function adapters(): array {
        return [['psr15'], ['symfony'], ['laravelsRouter']];
    }

    private function http(array $routes, array $options): Http {
        return new Http($this->client, fn () => 'test_php', $routes, ...$options);
    }

    private function psr15(array $routes, Closure $handler, array $options = []): Closure {
        $psr17 = new HttpFactory();
        $once = new Psr15($this->http($routes, $options), $psr17);
        return function (string $method, string $path, ?string $key, string $body, array $headers = []) use ($once, $handler) {
            $request = new ServerRequest($method, "http://localhost$path", $headers + ($key === null ? [] : ['Idempotency-Key' => $key]), $body);
            try {
                $response = $once->process($request, new class ($handler) implements RequestHandlerInterface {
                    public function __construct(private Closure $handler) {}
                    public function handle(ServerRequestInterface $request): ResponseInterface {
                        $answer = ($this->handler)($request->getBody()->getContents());
                        $headers = [];
                        foreach ($answer->headers as [$name, $value]) $headers[$name][] = $value;
                        return new PsrResponse($answer->status, $headers, $answer->body);
                    }
                });
            } catch (LogicException | RuntimeException $error) { // as a framework's error handler does
                $response = new PsrResponse(500, [], $error->getMessage());
            }
            return [$response->getStatusCode(), fn (string $name) => $response->getHeaderLine($name), (string) $response->getBody()];
        };
    }

    private function symfony(array $routes, Closure $handler, array $options = []): Closure {
        $events = new EventDispatcher();
        $events->addSubscriber(new Symfony($this->http($routes, $options)));
        $events->addListener(KernelEvents::EXCEPTION, fn (ExceptionEvent $event) => $event->setResponse(new Response($event->getThrowable()->getMessage(), 500)));
        $kernel = new HttpKernel($events, new ControllerResolver(), new RequestStack(), new ArgumentResolver());
        return function (string $method, string $path, ?string $key, string $body, array $headers = []) use ($kernel, $handler) {
            $request = Request::create("http://localhost$path", $method, content: $body);
            $request->headers->remove('content-type');
            $request->headers->add($headers + ($key === null ? [] : ['Idempotency-Key' => $key]));
            $request->attributes->set('_controller', function (Request $request) use ($handler) {
                $answer = $handler($request->getContent());
                $response = new Response($answer->body, $answer->status);
                foreach ($answer->headers as [$name, $value]) $response->headers->set($name, $value, false);
                return $response;
            });
            $response = $kernel->handle($request);
            return [$response->getStatusCode(), fn (string $name) => implode(', ', $response->headers->all($name)), $response->getContent()];
        };
    }

    private function laravelsRouter(array $routes, Closure $handler, array $options = []): Closure {
        $container = new Container();
        $container->bind(ExceptionHandler::class, fn () => new class implements ExceptionHandler {
            public function report(Throwable $e) {}
            public function shouldReport(Throwable $e) { return true; }
            public function render($request, Throwable $e) { return new \Illuminate\Http\Response($e->getMessage(), 500); }
            public function renderForConsole($output, Throwable $e) {}
        });
        $router = new Router(new Dispatcher($container), $container);
        $once = new Symfony($this->http($routes, $options));
        $router->aliasMiddleware('once', fn ($request, Closure $next) => $once->around($request, fn () => $next($request)));
        $router->any('/{path}', function (\Illuminate\Http\Request $request) use ($handler) {
            $answer = $handler($request->getContent());
            $response = new \Illuminate\Http\Response($answer->body, $answer->status);
            foreach ($answer->headers as [$name, $value]) $response->headers->set($name, $value, false);
            return $response;
        })->where('path', '.*')->middleware('once');
        return function (string $method, string $path, ?string $key, string $body, array $headers = []) use ($router, $container) {
            $request = \Illuminate\Http\Request::create("http://localhost$path", $method, content: $body);
            $request->headers->remove('content-type');
            $request->headers->add($headers + ($key === null ? [] : ['Idempotency-Key' => $key]));
            $container->instance(\Illuminate\Http\Request::class, $request);
            $response = $router->dispatch($request);
            return [$response->getStatusCode(), fn (string $name) => implode(', ', $response->headers->all($name)), $response->getContent()];
        };
    }

    private function handler(int $item): Closure {
        return function (string $body) use ($item) {
            $this->insert($item);
            return new Answer(201, $body, ['Link' => ['</a>', '</b>'], 'Set-Cookie' => 'session=1']);
        };
    }

    /** @dataProvider adapters */
    public function testAConflictRunsTheHandlerAgainAndAThrowUndoesIt(string $adapter): void {
        self::connect()->exec("CREATE SEQUENCE test_php.commits; CREATE FUNCTION test_php.refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF nextval('test_php.commits') % 3 > 0 THEN RAISE SQLSTATE '40001'; END IF; RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON test_php.orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
            WHEN (NEW.item = 90) EXECUTE FUNCTION test_php.refuse()");
        try {
            $bodies = [];
            $ask = $this->$adapter(['POST /orders' => new Route()], function (string $body) use (&$bodies) {
                $bodies[] = $body;
                return $this->handler(90)($body);
            });
            $key = self::id()->key;
            [$status, $header, $body] = $ask('POST', '/orders', $key, 'the body');
            $this->assertSame([201, 'the body', ['the body', 'the body', 'the body'], 1], [$status, $body, $bodies, self::orders(90)]);
            $this->assertSame('session=1', preg_replace('/;.*/', '', $header('Set-Cookie')));
            [$status, $header, $body] = $ask('POST', '/orders', "\"$key\"", 'the body');
            $this->assertSame([201, 'the body', 'true', '</a>, </b>', ''],
                [$status, $body, $header('Idempotent-Replayed'), $header('Link'), $header('Set-Cookie')]);
            $this->assertSame(422, $ask('POST', '/orders', $key, 'another body')[0]);
        } finally {
            self::connect()->exec('DROP FUNCTION test_php.refuse CASCADE; DROP SEQUENCE test_php.commits');
        }
        $runs = 0;
        $conflict = function () use (&$runs) { return ++$runs < 3 ? $this->client->db()->exec(self::raise('40001')) : new Answer(201); };
        $this->assertSame([201, 3], [$this->$adapter(['POST /orders' => new Route()], $conflict)('POST', '/orders', self::id()->key, '')[0], $runs]);
        foreach ([500 => fn () => throw new RuntimeException('printer on fire'), 503 => fn () => new Answer(503, 'busy')] as $wanted => $end) {
            $key = self::id()->key;
            $ask = $this->$adapter(['POST /orders' => new Route()], fn () => [$this->insert(91), $end()][1]);
            [$status, , $body] = $ask('POST', '/orders', $key, '');
            $this->assertSame([$wanted, true, 0], [$status, in_array($body, ['printer on fire', 'busy'], true), self::orders(91)]);
            $this->assertSame(201, $this->$adapter(['POST /orders' => new Route()], fn () => new Answer(201))('POST', '/orders', $key, '')[0]);
        }
    }

    /** @dataProvider adapters */
    public function testProblemsAnOptionalKeyTheLifetimeAndWhatIsNotTouched(string $adapter): void {
        $options = ['documentation' => 'https://shop.example.com/keys', 'lifetimeHeader' => true];
        $ask = $this->$adapter(['POST /orders/{id}' => new Route(), 'POST /free' => new Route(required: false)], $this->handler(92), $options);
        [$status, $header, $body] = $ask('POST', '/orders/1', null, '{}');
        $this->assertSame([400, '<https://shop.example.com/keys>; rel="describedby"; type="text/html"', 'application/problem+json'],
            [$status, $header('Link'), $header('Content-Type')]);
        $this->assertSame(['type' => 'https://shop.example.com/keys#missing', 'title' => 'Idempotency-Key is missing', 'status' => 400],
            array_slice(json_decode($body, true), 0, 3));
        $this->assertSame([400, 0], [$ask('POST', '/orders/1', '"', '{}')[0], self::orders(92)]);
        $this->assertSame([201, 201, 201], [$ask('POST', '/free', null, '')[0], $ask('POST', '/other', '"', '')[0], $ask('GET', '/orders/1', '"', '')[0]]);
        $key = self::id()->key;
        $expires = $ask('POST', '/orders/1', $key, '{}')[1]('Idempotency-Key-Expires');
        $this->assertGreaterThan(time(), strtotime($expires));
        $this->assertSame($expires, $ask('POST', '/orders/1', $key, '{ }')[1]('Idempotency-Key-Expires'));
        $this->assertSame(422, $ask('POST', '/orders/2', $key, '{}')[0]);
        self::connect()->exec("SELECT idempotency.redact('test_php', 'POST /orders/{id}', '$key')");
        $this->assertSame(410, $ask('POST', '/orders/1', $key, '{}')[0]);
    }

    /** @dataProvider adapters */
    public function testABodyThatPhpHasKeptIsNotComparedAsNothing(string $adapter): void {
        $headers = ['Content-Type' => 'multipart/form-data; boundary=x', 'Content-Length' => '100'];
        [$status, , $body] = $this->$adapter(['POST /files' => new Route()], $this->handler(93))('POST', '/files', 'k', '', $headers);
        $this->assertSame([500, 0], [$status, self::orders(93)]);
        $this->assertStringContainsString('enable_post_data_reading', $body);
        $file = 'one';
        $ask = $this->$adapter(['POST /files' => new Route(compare: function () use (&$file) { return ['file' => hash('sha256', $file)]; })], $this->handler(93));
        $key = self::id()->key;
        $this->assertSame([201, 201], [$ask('POST', '/files', $key, '', $headers)[0], $ask('POST', '/files', $key, '', $headers)[0]]);
        $file = 'two';
        $this->assertSame([422, 1], [$ask('POST', '/files', $key, '', $headers)[0], self::orders(93)]);
    }

    public function testSymfonysResponsesThatStreamItsListenersAndSubRequests(): void {
        $events = new EventDispatcher();
        $events->addSubscriber(new Symfony($this->http(['POST /stream' => new Route(), 'POST /array' => new Route()], [])));
        $events->addListener(KernelEvents::RESPONSE, fn (ResponseEvent $event) => $event->getResponse()->headers->set('Access-Control-Allow-Origin', '*'));
        $kernel = new HttpKernel($events, new ControllerResolver(), new RequestStack(), new ArgumentResolver());
        $ask = function (string $path, Closure $controller, string $key) use ($kernel) {
            $request = Request::create($path, 'POST');
            $request->headers->set('Idempotency-Key', $key);
            $request->attributes->set('_controller', $controller);
            return $kernel->handle($request);
        };
        $key = self::id()->key;
        foreach ([null, 'true'] as $replayed) {
            $response = $ask('/stream', fn () => new StreamedResponse(function () { echo "\0"; ob_flush(); echo "\xff"; }, 202, ['Content-Type' => 'application/octet-stream']), $key);
            $this->assertSame([202, "\0\xff", $replayed, '*'], [$response->getStatusCode(), $response->getContent(),
                $response->headers->get('Idempotent-Replayed'), $response->headers->get('Access-Control-Allow-Origin')]);
        }
        $forwarding = function (Request $request) use ($kernel) {
            $forwarded = $request->duplicate(attributes: ['_controller' => fn () => new Response("{$this->insert(95)} row")]);
            return $kernel->handle($forwarded, HttpKernelInterface::SUB_REQUEST);
        };
        $this->assertSame(['1 row', 1], [$ask('/stream', $forwarding, self::id()->key)->getContent(), self::orders(95)]);
        $error = self::thrown(fn () => $ask('/array', fn () => ['item' => $this->insert(94)], $key));
        $this->assertSame(['the controller has to return a Response, to be recorded', 0], [$error->getMessage(), self::orders(94)]);
    }
}
