<?php declare(strict_types=1);
// A way to the database of PG* on which the first "claimed" that the server says gets lost: it is committed, and nobody has heard of it.
// Says its port, and "lost".

$host = getenv('PGHOST') ?: '/var/run/postgresql';
$port = getenv('PGPORT') ?: '5432';
$target = $host[0] === '/' ? "unix://$host/.s.PGSQL.$port" : "tcp://$host:$port";
$listener = stream_socket_server('tcp://127.0.0.1:0');
echo substr(strrchr(stream_socket_get_name($listener, false), ':'), 1), "\n";
[$ends, $lost] = [[], false]; // socket => the other one, by number

while (true) {
    $readable = [$listener, ...array_map(fn ($pair) => $pair[0], $ends)];
    [$none, $never] = [null, null];
    stream_select($readable, $none, $never, null);
    foreach ($readable as $from) {
        if ($from === $listener) {
            [$client, $server] = [stream_socket_accept($listener), stream_socket_client($target)];
            $ends[(int) $client] = [$client, $server, false];
            $ends[(int) $server] = [$server, $client, true];
            continue;
        }
        if (!isset($ends[(int) $from])) continue; // the other one has ended it
        [, $to, $isServer] = $ends[(int) $from];
        $data = fread($from, 65536);
        $loses = $isServer && !$lost && str_contains((string) $data, 'claimed');
        if ($loses || $data === '' || $data === false) {
            unset($ends[(int) $from], $ends[(int) $to]);
            array_map(fclose(...), [$from, $to]);
        } else {
            fwrite($to, $data);
        }
        if ($loses) {
            $lost = true;
            echo "lost\n";
        }
    }
}
