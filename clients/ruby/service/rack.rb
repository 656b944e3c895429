# The conformance service on Rack alone.
require_relative 'sql'

APP = lambda do |env|
  body, db = env['rack.input']&.read.to_s, env['idempotency.db']
  account = Shop.account(env) unless env['PATH_INFO'] == '/health'
  answer = case "#{env['REQUEST_METHOD']} #{env['PATH_INFO']}"
           when 'POST /orders', 'POST /waiting-orders' then Shop.order(env, body, Shop.insert(db))
           when %r{\APOST /orders/(\d+)/refunds\z} then { status: 201, body: { refund: Shop.insert(db).call(account, $1) } }
           when 'POST /blobs'
             Shop.insert(db).call(account, 0)
             { status: 201, headers: Shop.blob_headers(env), body: body }
           when 'GET /orders' then { body: { orders: IdempotencyPg.with(Shop::POOL) { |own| Shop.count(own, account) } } }
           when 'GET /visits' then { body: { visits: IdempotencyPg.transaction(Shop::POOL) { |own| Shop.visit(own, account) } } }
           when 'GET /health' then { status: Shop.health }
           else { status: 404, body: { error: 'there is no such thing' } }
           end
  answer = IdempotencyPg::Answer.of(**answer)
  headers = answer.headers.group_by(&:first).transform_values { |lines| lines.map(&:last).join("\n") }
  [answer.status, headers, [answer.body]]
rescue IdempotencyPg::Refused => e
  raise if db # the middleware answers and rolls back
  [e.answer.status, e.answer.headers.to_h, [e.answer.body]]
end

once = Shop.once(Shop::POOL, Shop.charge(Shop::PAY))
Shop.serve(Rack::Builder.app do
  use IdempotencyPg::Middleware, **once
  run APP
end)
