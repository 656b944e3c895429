\set k random(1000000000000000000, 9000000000000000000)
SELECT dbos.enqueue_workflow('payment', 'payments', ARRAY['{"amount": 100}']::json[], workflow_id => :k);
