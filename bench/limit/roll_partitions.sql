CALL bench.roll_partitions(:lifetime, :width, :options);
\sleep 200 ms
