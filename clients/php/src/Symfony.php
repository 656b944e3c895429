<?php declare(strict_types=1);
// Symfony's HttpKernel: a subscriber that wraps the controller, after the firewall, the router and whoever refuses access. What a
// controller throws is still the kernel's to render, and every answer goes through kernel.response. Laravel: around(), in a middleware.
namespace IdempotencyPg;
use LogicException;
use Symfony\Component\EventDispatcher\EventSubscriberInterface;
use Symfony\Component\HttpFoundation\{Request, Response};
use Symfony\Component\HttpKernel\{Event\ControllerArgumentsEvent, KernelEvents};

final class Symfony implements EventSubscriberInterface {
    public function __construct(private Http $http) {}
    public static function getSubscribedEvents(): array { return [KernelEvents::CONTROLLER_ARGUMENTS => ['wrap', -1024]]; }

    public function wrap(ControllerArgumentsEvent $event): void {
        if (!$event->isMainRequest()) return;
        [$request, $controller, $arguments] = [$event->getRequest(), $event->getController(), $event->getArguments()];
        $event->setController(fn () => $this->around($request, fn () => $controller(...$arguments)));
        $event->setArguments([]);
    }
    public function around(Request $request, callable $run): mixed {
        if (!$found = $this->http->find($request->getMethod(), $request->getPathInfo())) return $run();
        [$lines, $length] = [$request->headers->all('idempotency-key'), (int) $request->headers->get('content-length')];
        $answer = $this->http->answer($found, $request, $lines, $request->getContent(), $length, function () use ($run) {
            $response = $run();
            if ($response->exception ?? null) throw $response->exception; // which Laravel has rendered on the way
            if (!$response instanceof Response) throw new LogicException('the controller has to return a Response, to be recorded');
            $body = ''; // which some do not have, but send, and flush on the way
            ob_start(function (string $chunk) use (&$body) { $body .= $chunk; return ''; });
            try { $response->sendContent(); } finally { ob_end_flush(); }
            return new Answer($response->getStatusCode(), $body, $response->headers->allPreserveCase());
        });
        if (!$answer) return $run();
        $response = new Response($answer->body, $answer->status);
        foreach ($answer->headers as [$name, $value]) $response->headers->set($name, $value, false);
        return $response;
    }
}
