# The conformance service on Sinatra, which makes a 500 of what a handler throws.
require 'sinatra/base'
require_relative 'sql'

class Application < Sinatra::Base
  set :environment, :production
  use IdempotencyPg::Middleware, **Shop.once(Shop::POOL, Shop.charge(Shop::PAY))

  helpers do
    def db = env['idempotency.db']
    def account = Shop.account(env)

    def answer(status: 200, headers: {}, body: '')
      self.headers(headers.to_h.transform_values { |value| [*value].join("\n") })
      content_type(:json) unless body.is_a?(String)
      [status, body.is_a?(String) ? body : JSON.generate(body)]
    end
  end

  error(IdempotencyPg::Refused) { |refused| answer(**refused.answer.to_h.slice(:status, :headers, :body)) }
  error { answer(status: 500, body: { error: 'a fault' }) }

  post('/orders') { answer(**Shop.order(env, request.body.read, Shop.insert(db))) }
  post('/waiting-orders') { answer(**Shop.order(env, request.body.read, Shop.insert(db))) }
  post('/orders/:id/refunds') { answer(status: 201, body: { refund: Shop.insert(db).call(account, params['id']) }) }
  post '/blobs' do
    Shop.insert(db).call(account, 0)
    answer(status: 201, headers: Shop.blob_headers(env), body: request.body.read)
  end
  get('/orders') { answer(body: { orders: IdempotencyPg.with(Shop::POOL) { |own| Shop.count(own, account) } }) }
  get('/visits') { answer(body: { visits: IdempotencyPg.transaction(Shop::POOL) { |own| Shop.visit(own, account) } }) }
  get('/health') { Shop.health }
end

Shop.serve(Application.new)
