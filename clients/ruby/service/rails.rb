# The conformance service on Rails: ActiveRecord's models take part in the claim's transaction.
require 'erb'
require_relative 'shop'
settings = { pool: Shop::POOL_SIZE, checkout_timeout: 10, connect_timeout: 10, prepared_statements: false, advisory_locks: false }
ENV['DATABASE_URL'] = "postgresql://#{ENV['PGUSER']}@#{ENV['PGHOST']}:#{ENV['PGPORT']}/#{ENV['PGDATABASE']}?#{URI.encode_www_form(settings)}"
ENV['RAILS_ENV'] = 'production'
require 'active_record/railtie'
require 'action_controller/railtie'

class Order < ActiveRecord::Base
  self.table_name = 'shop.orders'
end

class Payment < ActiveRecord::Base
  self.table_name = 'shop.payments'
end

class Visit < ActiveRecord::Base
  self.table_name = 'shop.visits'
end

class ShopController < ActionController::API
  rescue_from(IdempotencyPg::Refused) { |refused| answer(**refused.answer.to_h.slice(:status, :headers, :body)) }

  INSERT = ->(account, item) { Order.create!(account: account, item: item).id }

  def order = answer(**Shop.order(request.env, request.raw_post, INSERT))
  def refund = answer(status: 201, body: { refund: INSERT.call(account, params[:id]) })

  def blob
    INSERT.call(account, 0)
    answer(status: 201, headers: Shop.blob_headers(request.env), body: request.raw_post)
  end

  def orders = answer(body: { orders: Order.where(account: account).count })

  def visits
    Visit.insert!({ account: account }, returning: false)
    answer(body: { visits: Visit.where(account: account).count })
  end

  def health
    critical = Order.connection.select_value("SELECT count(*) FROM idempotency.health() WHERE status = 'critical'")
    head(critical.zero? ? 200 : 503)
  rescue ActiveRecord::ActiveRecordError
    head(503)
  end

  private

  def account = Shop.account(request.env)

  def answer(status: 200, headers: {}, body: '')
    headers.each { |name, value| response.headers[name] = [*value].join("\n") }
    body.is_a?(String) ? render(body: body, status: status) : render(json: body, status: status)
  end
end

class Application < Rails::Application
  config.load_defaults Rails::VERSION::STRING.to_f
  config.eager_load = true
  config.secret_key_base = 'signs nothing'
  config.logger = Logger.new($stderr)
  config.log_level = :warn
  # Innermost, so that it sees what a controller throws.
  config.middleware.use IdempotencyPg::Middleware, **Shop.once(ActiveRecord::Base, Shop.charge(
    ->(_, account, charge, amount) { Payment.insert!({ account: account, charge: charge, amount: amount }, returning: false) }))
end

Application.initialize!
Application.routes.draw do
  post '/orders', to: 'shop#order'
  post '/waiting-orders', to: 'shop#order'
  post '/orders/:id/refunds', to: 'shop#refund'
  post '/blobs', to: 'shop#blob'
  get '/orders', to: 'shop#orders'
  get '/visits', to: 'shop#visits'
  get '/health', to: 'shop#health'
end
Shop.serve(Application)
