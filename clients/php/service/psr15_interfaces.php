<?php
// The two interfaces of PSR-15, where nobody else has them. Composer would; of Debian's packages only an extension of PHP does, php-psr,
// which cannot be installed beside Composer.

namespace Psr\Http\Server;

use Psr\Http\Message\{ResponseInterface, ServerRequestInterface};

if (!interface_exists(RequestHandlerInterface::class)) {
    interface RequestHandlerInterface {
        public function handle(ServerRequestInterface $request): ResponseInterface;
    }
    interface MiddlewareInterface {
        public function process(ServerRequestInterface $request, RequestHandlerInterface $handler): ResponseInterface;
    }
}
