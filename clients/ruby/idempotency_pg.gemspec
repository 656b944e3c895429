Gem::Specification.new do |gem|
  gem.name = 'idempotency_pg'
  gem.version = '1.0.0'
  gem.summary = 'Safe retries for Rack, Sinatra and Rails on the PostgreSQL extension idempotency'
  gem.description = 'A handler is run at most once for each Idempotency-Key, its rows and its answer are committed together, ' \
                    'and a repeat gets the recorded answer.'
  gem.authors = ['The idempotency project']
  gem.license = 'PostgreSQL'
  gem.required_ruby_version = '>= 3.0'
  gem.files = Dir['README.md', 'lib/**/*.rb', 'sig/*.rbs']
  gem.add_dependency 'pg', '>= 1.3'
end
