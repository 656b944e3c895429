<?php declare(strict_types=1);
// The conformance service on Symfony's HttpKernel and router.

use IdempotencyPg\{Answer, Symfony};
use Symfony\Component\EventDispatcher\EventDispatcher;
use Symfony\Component\HttpFoundation\{Request, RequestStack, Response};
use Symfony\Component\HttpKernel\Controller\{ArgumentResolver, ControllerResolver};
use Symfony\Component\HttpKernel\Event\{ExceptionEvent, RequestEvent};
use Symfony\Component\HttpKernel\EventListener\RouterListener;
use Symfony\Component\HttpKernel\{HttpKernel, KernelEvents};
use Symfony\Component\Routing\Matcher\UrlMatcher;
use Symfony\Component\Routing\{RequestContext, Route, RouteCollection};

require '/usr/share/php/Symfony/Component/HttpKernel/autoload.php';
require '/usr/share/php/Symfony/Component/Routing/autoload.php';
require __DIR__ . '/shop.php';
require __DIR__ . '/../src/Symfony.php';

function respond(Answer $answer): Response {
    $response = new Response($answer->body, $answer->status);
    foreach ($answer->headers as [$name, $value]) $response->headers->set($name, $value, false);
    return $response;
}

$shop = new Shop();
$controller = fn (Request $request) => respond($shop->answer($request->getMethod(), $request->getPathInfo(), $request->attributes->get('user'),
    $request->getContent(), fn (string $name) => $request->headers->get($name, '')));
$routes = new RouteCollection();
$paths = ['/health', '/orders', '/waiting-orders', '/orders/{id}/refunds', '/blobs', '/charges', '/visits'];
foreach ($paths as $path) $routes->add($path, new Route($path, ['_controller' => $controller]));

$events = new EventDispatcher();
$events->addSubscriber(new RouterListener(new UrlMatcher($routes, new RequestContext()), new RequestStack()));
$events->addSubscriber(new Symfony($shop->http(fn ($request) => $request->attributes->get('user'), fn ($request) => $request->getContent())));
$events->addListener(KernelEvents::REQUEST, function (RequestEvent $event) {
    $user = Shop::user($event->getRequest()->headers->get('authorization', ''));
    $event->getRequest()->attributes->set('user', $user);
    if ($user === null && $event->getRequest()->getPathInfo() !== '/health') $event->setResponse(respond(new Answer(401, ['error' => 'who is it?'])));
});
$events->addListener(KernelEvents::EXCEPTION, fn (ExceptionEvent $event) => $event->setResponse(respond(new Answer(
    $event->getThrowable() instanceof BadRequest ? 400 : 500, ['title' => $event->getThrowable()->getMessage()], ['Content-Type' => 'application/problem+json']))));

$kernel = new HttpKernel($events, new ControllerResolver(), new RequestStack(), new ArgumentResolver());
$kernel->handle(Request::createFromGlobals())->send();
